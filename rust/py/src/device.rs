//! `Device` and `End`: the memory device.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ginnel_core::device::{self, Kind, MAX_MTU, MIN_MTU, Refused, Side};
use ginnel_core::packet::{LocalPool, MAX_LEN, Packet, Pool};
use ginnel_core::queue::Wake;
use ginnel_io::wake::{Waker, wait_readable};
use pyo3::buffer::PyBuffer;
use pyo3::exceptions::{PyTimeoutError, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyDict, PyType};

/// The buffers of all devices and planes of this process: 16 MiB at most lie free.
pub static POOL: LazyLock<Arc<Pool>> = LazyLock::new(|| Pool::new(8192));

#[pyclass(module = "ginnel._core", frozen)]
pub struct Device {
    device: Arc<device::Device>,
}

#[pymethods]
impl Device {
    #[new]
    fn new(kind: &str, mtu: u32, capacity: usize) -> PyResult<Device> {
        let kind = match kind {
            "tun" => Kind::Tun,
            "tap" => Kind::Tap,
            _ => return Err(PyValueError::new_err(format!("device kind {kind:?}; write 'tun' or 'tap'"))),
        };
        if capacity == 0 {
            return Err(PyValueError::new_err("a device's queue holds at least one packet"));
        }
        let device = device::Device::new(kind, MIN_MTU, capacity);
        if !device.set_mtu(mtu) {
            return Err(mtu_error(mtu));
        }
        Ok(Device { device })
    }

    #[getter]
    fn kind(&self) -> &'static str {
        match self.device.kind() {
            Kind::Tun => "tun",
            Kind::Tap => "tap",
        }
    }

    #[getter]
    fn mtu(&self) -> u32 {
        self.device.mtu()
    }

    fn set_mtu(&self, mtu: u32) -> PyResult<()> {
        if self.device.set_mtu(mtu) { Ok(()) } else { Err(mtu_error(mtu)) }
    }

    #[getter]
    fn up(&self) -> bool {
        self.device.is_up()
    }

    fn set_up(&self, up: bool) -> PyResult<()> {
        if self.device.is_deleted() {
            return Err(device_error(libc::EBADFD, "the device was deleted"));
        }
        self.device.set_up(up);
        Ok(())
    }

    fn attach(&self, side: &str) -> PyResult<End> {
        let side = parse_side(side)?;
        let Some(end) = self.device.attach(side) else {
            return Err(match self.device.is_deleted() {
                true => device_error(libc::EBADFD, "the device was deleted"),
                false => device_error(libc::EBUSY, "somebody holds this end of the device"),
            });
        };
        End::new(end)
    }

    fn delete(&self) {
        self.device.delete();
    }

    #[getter]
    fn deleted(&self) -> bool {
        self.device.is_deleted()
    }

    fn statistics<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let statistics = self.device.statistics();
        let dict = PyDict::new(py);
        for (prefix, counters) in [("rx", statistics.received), ("tx", statistics.sent)] {
            dict.set_item(format!("{prefix}_packets"), counters.packets)?;
            dict.set_item(format!("{prefix}_bytes"), counters.bytes)?;
            dict.set_item(format!("{prefix}_dropped"), counters.dropped)?;
        }
        dict.set_item("errors", statistics.errors)?;
        Ok(dict)
    }
}

impl Device {
    /// The device itself.
    pub fn inner(&self) -> &Arc<device::Device> {
        &self.device
    }
}

#[pyclass(module = "ginnel._core", frozen)]
pub struct End {
    held: Mutex<Option<Held>>,
    readiness: Arc<Waker>,
}

struct Held {
    end: device::End,
    pool: LocalPool,
}

/// Wakes whoever waits for a packet that will never come.
struct Deletion {
    device: Arc<device::Device>,
    readiness: Arc<Waker>,
}

impl Wake for Deletion {
    fn wake(&self) {
        // The queue wakes its reader for packets too; for these its readiness is exact already.
        if self.device.is_deleted() {
            self.readiness.wake();
        }
    }
}

#[pymethods]
impl End {
    #[pyo3(signature = (timeout=None))]
    fn read<'py>(&self, py: Python<'py>, timeout: Option<f64>) -> PyResult<Bound<'py, PyBytes>> {
        let deadline = timeout.map(|seconds| deadline(seconds, Instant::now())).transpose()?.flatten();
        loop {
            if let Some(packet) = self.take_packet(py)? {
                return Ok(packet);
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                return Err(PyTimeoutError::new_err("no packet came in time"));
            }
            match py.detach(|| wait_readable(&*self.readiness, left)) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => py.check_signals()?,
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn write(&self, py: Python<'_>, packet: &Bound<'_, PyAny>) -> PyResult<usize> {
        let mut held = self.lock();
        let Held { end, pool } = held.as_mut().ok_or_else(closed)?;
        let Some(packet) = copy_in(py, packet, pool)? else {
            end.count_errors(1);
            return Err(refused(end.writable().err().unwrap_or(Refused::Malformed)));
        };
        let (len, checked) = (packet.len(), end.check(&packet));
        let mut packets = vec![packet];
        let sent = end.send(&mut packets);
        pool.recycle_all(packets);
        sent.map_err(refused)?;
        checked.map_err(refused)?;
        Ok(len)
    }

    fn read_batch<'py>(&self, py: Python<'py>, limit: usize) -> PyResult<Vec<Bound<'py, PyBytes>>> {
        let mut packets = Vec::new();
        let mut held = self.lock();
        let Held { end, pool } = held.as_mut().ok_or_else(closed)?;
        end.receive(&mut packets, limit).map_err(refused)?;
        let batch = packets.iter().map(|packet| PyBytes::new(py, packet)).collect();
        pool.recycle_all(packets);
        Ok(batch)
    }

    fn write_batch(&self, py: Python<'_>, packets: Vec<Bound<'_, PyAny>>) -> PyResult<usize> {
        let mut held = self.lock();
        let Held { end, pool } = held.as_mut().ok_or_else(closed)?;
        let copies: Vec<_> =
            packets.iter().map(|packet| copy_in(py, packet, pool)).collect::<PyResult<_>>()?;
        let mut whole: Vec<Packet> = copies.into_iter().flatten().collect();
        end.count_errors(packets.len() - whole.len());
        let sent = end.send(&mut whole);
        pool.recycle_all(whole);
        sent.map_err(refused)
    }

    fn fileno(&self) -> PyResult<i32> {
        self.lock().as_ref().ok_or_else(closed)?;
        Ok(self.readiness.as_fd().as_raw_fd())
    }

    fn close(&self) {
        drop(self.take());
    }

    #[getter]
    fn closed(&self) -> bool {
        self.lock().is_none()
    }
}

impl End {
    fn new(end: device::End) -> PyResult<End> {
        let readiness = Arc::new(Waker::new()?);
        let deletion = Deletion { device: end.device().clone(), readiness: readiness.clone() };
        end.incoming().set_reader(Some(Arc::new(deletion)));
        end.incoming().set_readiness(Some(readiness.clone()));
        Ok(End { held: Mutex::new(Some(Held { end, pool: POOL.local() })), readiness })
    }

    /// Takes the end out of Python's hands; the object is closed after.
    pub fn take(&self) -> Option<device::End> {
        let Held { end, .. } = self.lock().take()?;
        end.incoming().set_readiness(None);
        end.incoming().set_reader(None);
        self.readiness.wake();
        Some(end)
    }

    fn take_packet<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyBytes>>> {
        let mut packets = Vec::new();
        let mut held = self.lock();
        let Held { end, pool } = held.as_mut().ok_or_else(closed)?;
        end.receive(&mut packets, 1).map_err(refused)?;
        let packet = packets.first().map(|packet| PyBytes::new(py, packet));
        pool.recycle_all(packets);
        Ok(packet)
    }

    fn lock(&self) -> MutexGuard<'_, Option<Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A side by its name.
pub fn parse_side(side: &str) -> PyResult<Side> {
    match side {
        "application" => Ok(Side::Application),
        "interface" => Ok(Side::Interface),
        _ => {
            let message = format!("device end {side:?}; write 'application' or 'interface'");
            Err(PyValueError::new_err(message))
        }
    }
}

/// ginnel.errors.DeviceError.
pub fn device_error(errno: i32, what: &str) -> PyErr {
    static TYPE: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    Python::attach(|py| match TYPE.import(py, "ginnel.errors", "DeviceError") {
        Ok(class) => PyErr::from_type(class.clone(), (errno, what.to_owned())),
        Err(error) => error,
    })
}

/// A copy of a packet given by Python; `None` if it is longer than any packet is.
fn copy_in(py: Python<'_>, bytes: &Bound<'_, PyAny>, pool: &mut LocalPool) -> PyResult<Option<Packet>> {
    if let Ok(bytes) = bytes.cast::<PyBytes>() {
        let bytes = bytes.as_bytes();
        return Ok((bytes.len() <= MAX_LEN).then(|| pool.packet_from(bytes)));
    }
    let buffer = PyBuffer::<u8>::get(bytes)?;
    if buffer.len_bytes() > MAX_LEN {
        return Ok(None);
    }
    let mut packet = pool.packet(buffer.len_bytes());
    buffer.copy_to_slice(py, &mut packet)?;
    Ok(Some(packet))
}

/// The instant `seconds` from now; `None` when that is beyond the clock.
fn deadline(seconds: f64, now: Instant) -> PyResult<Option<Instant>> {
    if seconds.is_nan() {
        return Err(PyValueError::new_err("timeout is not a number"));
    }
    Ok(Duration::try_from_secs_f64(seconds.max(0.0)).ok().and_then(|left| now.checked_add(left)))
}

fn refused(refused: Refused) -> PyErr {
    match refused {
        Refused::Down => device_error(libc::EIO, "the interface is down"),
        Refused::Malformed => device_error(libc::EINVAL, "not a packet of this kind of device"),
        Refused::Gone => device_error(libc::EBADFD, "the device was deleted"),
    }
}

fn closed() -> PyErr {
    device_error(libc::EBADFD, "this end of the device is closed")
}

fn mtu_error(mtu: u32) -> PyErr {
    device_error(libc::EINVAL, &format!("MTU {mtu} is outside {MIN_MTU} to {MAX_MTU} (14 less for TAP)"))
}
