//! `Device` and `End`: the memory device.

use std::fmt::Display;
use std::io;
use std::os::fd::{AsFd, AsRawFd, IntoRawFd, RawFd};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use ginnel_core::device::{self, Kind, MAX_MTU, MIN_MTU, Refused, Side};
use ginnel_core::packet::{LocalPool, MAX_LEN, Packet, Pool};
use ginnel_core::queue::{MAX_CAPACITY, Wake};
use ginnel_io::link;
use ginnel_io::pollable::Pollable;
use ginnel_io::wake::{Gate, Waker};
use pyo3::buffer::PyBuffer;
use pyo3::exceptions::{PyTimeoutError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyDict, PyInt, PyMemoryView, PySlice, PyTuple, PyType};

use crate::link::not_joined;

/// The buffers of all devices and planes of this process: 16 MiB at most lie free.
pub static POOL: LazyLock<Arc<Pool>> = LazyLock::new(|| Pool::new(8192));

#[pyclass(module = "ginnel._core", frozen)]
pub struct Device {
    device: Arc<device::Device>,
    watcher: OnceLock<Arc<Waker>>,
}

#[pymethods]
impl Device {
    #[new]
    fn new(kind: &str, mtu: &Bound<'_, PyInt>, capacity: &Bound<'_, PyInt>) -> PyResult<Device> {
        let kind = parse_kind(kind)?;
        let device = device::Device::new(kind, MIN_MTU, parse_queue_length(capacity)?);
        let device = Device { device, watcher: OnceLock::new() };
        device.set_mtu(mtu)?;
        Ok(device)
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

    fn set_mtu(&self, mtu: &Bound<'_, PyInt>) -> PyResult<()> {
        match mtu.extract() {
            Ok(valid) if self.device.set_mtu(valid) => Ok(()),
            _ => Err(mtu_error(mtu)),
        }
    }

    #[getter]
    fn queue_length(&self) -> usize {
        self.device.capacity()
    }

    fn set_queue_length(&self, packets: &Bound<'_, PyInt>) -> PyResult<()> {
        self.device.set_capacity(parse_queue_length(packets)?);
        Ok(())
    }

    #[getter]
    fn up(&self) -> bool {
        self.device.is_up()
    }

    fn set_up(&self, up: bool) -> PyResult<()> {
        match self.device.set_up(up) {
            true => Ok(()),
            false => Err(refused(Refused::Gone)),
        }
    }

    fn attach(&self, side: &str) -> PyResult<End> {
        let side = parse_side(side)?;
        let Some(end) = self.device.attach(side) else {
            return Err(match self.device.is_deleted() {
                true => device_error(libc::EBADFD, "the device was deleted"),
                false => device_error(libc::EBUSY, "somebody holds this end of the device"),
            });
        };
        Ok(End::new(end))
    }

    fn watch(&self) -> PyResult<RawFd> {
        let watcher = match self.watcher.get() {
            Some(watcher) => watcher,
            None => {
                let made = Arc::new(Waker::new().map_err(system_error)?);
                self.watcher.get_or_init(|| made)
            }
        };
        watcher.clear();
        let wake: Arc<dyn Wake> = watcher.clone();
        self.device.set_watcher(&wake);
        Ok(watcher.as_fd().as_raw_fd())
    }

    fn is_held(&self, side: &str) -> PyResult<bool> {
        Ok(self.device.is_attached(parse_side(side)?))
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
            dict.set_item(format!("{prefix}_errors"), counters.errors)?;
        }
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
    gate: Arc<Gate>,
}

struct Held {
    end: device::End,
    pool: LocalPool,
    /// Empty between calls.
    packets: Vec<Packet>,
    /// Made when somebody first asks for a number to poll: keeping it in step costs system calls.
    pollable: Option<Arc<Pollable>>,
}

#[pymethods]
impl End {
    #[pyo3(signature = (timeout=None))]
    fn read<'py>(&self, py: Python<'py>, timeout: Option<f64>) -> PyResult<Bound<'py, PyBytes>> {
        self.wait_for(py, timeout, |packet| Ok(PyBytes::new(py, packet)))
    }

    #[pyo3(signature = (buffer, timeout=None))]
    fn read_into(&self, py: Python<'_>, buffer: &Bound<'_, PyAny>, timeout: Option<f64>) -> PyResult<usize> {
        let (buffer, len) = writable_buffer(buffer)?;
        if len == 0 {
            return self.with(|held| held.refused_if_gone().map(|()| 0));
        }
        self.wait_for(py, timeout, |packet| copy_out(py, packet, &buffer, len))
    }

    fn write(&self, py: Python<'_>, packet: &Bound<'_, PyAny>) -> PyResult<usize> {
        let bytes = Source::of(packet)?;
        self.with(|held| {
            let packet = bytes.copy(py, &mut held.pool)?;
            let Some(packet) = packet.filter(|packet| held.end.check(packet).is_ok()) else {
                held.end.count_errors(1);
                held.refused_if_gone()?;
                return Err(refused(Refused::Malformed));
            };
            let len = packet.len();
            held.packets.push(packet);
            held.send().map(|_| len)
        })
    }

    fn read_batch<'py>(&self, py: Python<'py>, limit: usize) -> PyResult<Vec<Bound<'py, PyBytes>>> {
        let packets = self.with(|held| {
            held.end.receive(&mut held.packets, limit).map_err(refused)?;
            Ok(std::mem::take(&mut held.packets))
        })?;
        let batch = packets.iter().map(|packet| PyBytes::new(py, packet)).collect();
        self.give_back(packets);
        Ok(batch)
    }

    fn write_batch(&self, py: Python<'_>, packets: &Bound<'_, PyAny>) -> PyResult<usize> {
        let packets: Vec<Bound<'_, PyAny>> = packets.try_iter()?.collect::<PyResult<_>>()?;
        let sources: Vec<Source<'_>> = packets.iter().map(Source::of).collect::<PyResult<_>>()?;
        self.with(|held| {
            let copied = sources.iter().try_for_each(|source| {
                match source.copy(py, &mut held.pool)? {
                    Some(copy) => held.packets.push(copy),
                    None => held.end.count_errors(1),
                }
                Ok(())
            });
            if copied.is_err() {
                held.pool.recycle_all(held.packets.drain(..));
            }
            copied.and_then(|()| held.send())
        })
    }

    fn fileno(&self) -> PyResult<RawFd> {
        self.with(|held| {
            if let Some(pollable) = &held.pollable {
                return Ok(pollable.number());
            }
            let pollable = Arc::new(Pollable::new().map_err(system_error)?);
            // In this order, for a socket that is hung up changes no more.
            held.end.outgoing().set_writer_readiness(Some(pollable.clone()));
            held.end.incoming().set_reader_readiness(Some(pollable.clone()));
            Ok(held.pollable.insert(pollable).number())
        })
    }

    fn open_fd(&self) -> PyResult<RawFd> {
        let (ours, theirs) = link::pair().map_err(system_error)?;
        let end = self.take().ok_or_else(closed)?;
        link::join(end, ours, &POOL).map_err(not_joined)?;
        Ok(theirs.into_raw_fd())
    }

    fn close(&self) {
        drop(self.take());
    }

    #[getter]
    fn closed(&self) -> bool {
        self.lock().is_none()
    }

    fn __enter__(this: Bound<'_, Self>) -> Bound<'_, Self> {
        this
    }

    #[pyo3(signature = (*_exc_info))]
    fn __exit__(&self, _exc_info: &Bound<'_, PyTuple>) {
        self.close();
    }
}

impl End {
    fn new(end: device::End) -> End {
        let gate = Arc::new(Gate::default());
        end.incoming().set_reader(Some(gate.clone()));
        let held = Held { end, pool: POOL.local(), packets: Vec::new(), pollable: None };
        End { held: Mutex::new(Some(held)), gate }
    }

    /// Takes the end out of Python's hands; the object is closed after.
    pub fn take(&self) -> Option<device::End> {
        let Held { end, pollable, .. } = self.lock().take()?;
        end.incoming().set_reader_readiness(None);
        end.outgoing().set_writer_readiness(None);
        end.incoming().set_reader(None);
        drop(pollable);
        self.gate.wake();
        Some(end)
    }

    /// Gives `use_packet` the next packet, now or when there is one; an empty one at the end of all.
    fn wait_for<R>(
        &self,
        py: Python<'_>,
        timeout: Option<f64>,
        use_packet: impl FnOnce(&[u8]) -> PyResult<R>,
    ) -> PyResult<R> {
        let Some(packet) = self.next_packet(py, timeout)? else { return use_packet(&[]) };
        // With nothing locked: what makes Python objects may run any code.
        let result = use_packet(&packet);
        self.give_back(vec![packet]);
        result
    }

    /// None at the end of all.
    fn next_packet(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<Option<Packet>> {
        let mut seen = self.gate.changes();
        if let Some(packet) = self.take_packet()? {
            return Ok(packet);
        }
        let mut patience = Patience::new(timeout)?;
        loop {
            let left = patience.left()?;
            match py.detach(|| self.gate.wait(seen, left)) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => py.check_signals()?,
                Err(error) => return Err(system_error(error)),
            }
            seen = self.gate.changes();
            if let Some(packet) = self.take_packet()? {
                return Ok(packet);
            }
        }
    }

    /// The next packet, or the end of all; None while there may be more.
    fn take_packet(&self) -> PyResult<Option<Option<Packet>>> {
        self.with(|held| match held.end.receive(&mut held.packets, 1).map_err(refused)? {
            0 => Ok(held.end.incoming().is_ended().then_some(None)),
            _ => Ok(Some(held.packets.pop())),
        })
    }

    /// Takes the buffers of packets back that were used.
    fn give_back(&self, packets: Vec<Packet>) {
        if let Some(held) = self.lock().as_mut() {
            held.pool.recycle_all(packets);
        }
    }

    fn with<R>(&self, work: impl FnOnce(&mut Held) -> PyResult<R>) -> PyResult<R> {
        self.lock().as_mut().ok_or_else(closed).and_then(work)
    }

    fn lock(&self) -> MutexGuard<'_, Option<Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    fn send(&mut self) -> PyResult<usize> {
        let sent = self.end.send(&mut self.packets);
        self.pool.recycle_all(self.packets.drain(..));
        sent.map_err(refused)
    }

    fn refused_if_gone(&self) -> PyResult<()> {
        match self.end.writable() {
            Err(Refused::Gone) => Err(refused(Refused::Gone)),
            _ => Ok(()),
        }
    }
}

/// A kind by its name.
pub fn parse_kind(kind: &str) -> PyResult<Kind> {
    match kind {
        "tun" => Ok(Kind::Tun),
        "tap" => Ok(Kind::Tap),
        _ => Err(PyValueError::new_err(format!("device kind {kind:?}; write 'tun' or 'tap'"))),
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

/// DeviceError with the system's errno.
pub fn system_error(error: io::Error) -> PyErr {
    device_error(error.raw_os_error().unwrap_or(libc::EIO), "the system refuses a descriptor")
}

/// Bytes that Python gives: looked for before anything is locked, since that may run any code.
pub enum Source<'a> {
    Bytes(&'a [u8]),
    Buffer(PyBuffer<u8>),
}

impl<'a> Source<'a> {
    pub fn of(object: &'a Bound<'_, PyAny>) -> PyResult<Source<'a>> {
        match object.cast::<PyBytes>() {
            Ok(bytes) => Ok(Source::Bytes(bytes.as_bytes())),
            Err(_) => Ok(Source::Buffer(PyBuffer::get(object)?)),
        }
    }

    /// A packet of them; `None` if they are more than any packet has.
    fn copy(&self, py: Python<'_>, pool: &mut LocalPool) -> PyResult<Option<Packet>> {
        match self {
            Source::Bytes(bytes) => Ok((bytes.len() <= MAX_LEN).then(|| pool.packet_from(bytes))),
            Source::Buffer(buffer) if buffer.len_bytes() > MAX_LEN => Ok(None),
            Source::Buffer(buffer) => {
                let mut packet = pool.packet(buffer.len_bytes());
                buffer.copy_to_slice(py, &mut packet)?;
                Ok(Some(packet))
            }
        }
    }

    /// Gives them to `work`, wherever they lie.
    pub fn with<R>(&self, py: Python<'_>, work: impl FnOnce(&[u8]) -> R) -> PyResult<R> {
        match self {
            Source::Bytes(bytes) => Ok(work(bytes)),
            Source::Buffer(buffer) => Ok(work(&buffer.to_vec(py)?)),
        }
    }
}

/// A view of a buffer that can be written, and its length in bytes.
pub fn writable_buffer<'py>(buffer: &Bound<'py, PyAny>) -> PyResult<(Bound<'py, PyMemoryView>, usize)> {
    let bytes = PyBuffer::<u8>::get(buffer)?;
    if bytes.readonly() {
        return Err(PyTypeError::new_err("this buffer cannot be written"));
    }
    Ok((PyMemoryView::from(buffer)?, bytes.len_bytes()))
}

/// As much of a packet as a buffer of `len` bytes holds; how much that is.
pub fn copy_out(
    py: Python<'_>,
    packet: &[u8],
    buffer: &Bound<'_, PyMemoryView>,
    len: usize,
) -> PyResult<usize> {
    let len = packet.len().min(len);
    let place = buffer.get_item(PySlice::new(py, 0, len as isize, 1))?;
    PyBuffer::<u8>::get(&place)?.copy_from_slice(py, &packet[..len])?;
    Ok(len)
}

/// How long somebody still waits.
pub struct Patience {
    deadline: Option<Instant>,
    over: bool,
}

impl Patience {
    /// In seconds; None is for ever, and so is what is beyond the clock.
    pub fn new(timeout: Option<f64>) -> PyResult<Patience> {
        let Some(seconds) = timeout else { return Ok(Patience { deadline: None, over: false }) };
        if seconds.is_nan() {
            return Err(PyValueError::new_err("timeout is not a number"));
        }
        let left = Duration::try_from_secs_f64(seconds.max(0.0)).ok();
        let deadline = left.and_then(|left| Instant::now().checked_add(left));
        Ok(Patience { deadline, over: seconds <= 0.0 })
    }

    /// The time left, None without a limit. TimeoutError when it is over.
    pub fn left(&mut self) -> PyResult<Option<Duration>> {
        let left = self.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        self.over |= left == Some(Duration::ZERO);
        if self.over {
            return Err(PyTimeoutError::new_err((libc::EAGAIN, "no packet came in time")));
        }
        Ok(left)
    }
}

fn parse_queue_length(packets: &Bound<'_, PyInt>) -> PyResult<usize> {
    match packets.extract() {
        Ok(length @ 0..=MAX_CAPACITY) => Ok(length),
        _ => {
            let message = format!("a queue of {packets} packets; write 0 to {MAX_CAPACITY}");
            Err(device_error(libc::ERANGE, &message))
        }
    }
}

fn refused(refused: Refused) -> PyErr {
    match refused {
        Refused::Down => device_error(libc::EIO, "the interface is down"),
        Refused::Malformed => device_error(libc::EINVAL, "not a packet of this kind of device"),
        Refused::Gone => device_error(libc::EBADFD, "the device was deleted"),
    }
}

pub fn closed() -> PyErr {
    device_error(libc::EBADFD, "this end of the device is closed")
}

/// What is said of an MTU that no device has.
pub fn mtu_error(mtu: impl Display) -> PyErr {
    device_error(libc::EINVAL, &format!("MTU {mtu} is outside {MIN_MTU} to {MAX_MTU} (14 less for TAP)"))
}
