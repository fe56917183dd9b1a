//! `ginnel._core.DescriptorEnd`.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ginnel_io::packet_file::{BUFFER, PacketFile};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyTuple};
use rustix::io::Errno;

use crate::device::{Patience, Source, closed, copy_out, device_error, system_error, writable_buffer};

#[pyclass(module = "ginnel._core", frozen)]
pub struct DescriptorEnd {
    held: Mutex<Option<Arc<PacketFile>>>,
    dropped: AtomicU64,
}

#[pymethods]
impl DescriptorEnd {
    #[new]
    fn new(fd: RawFd) -> PyResult<DescriptorEnd> {
        let file = Arc::new(PacketFile::adopt(fd).map_err(system_error)?);
        Ok(DescriptorEnd { held: Mutex::new(Some(file)), dropped: AtomicU64::new(0) })
    }

    #[pyo3(signature = (timeout=None))]
    fn read<'py>(&self, py: Python<'py>, timeout: Option<f64>) -> PyResult<Bound<'py, PyBytes>> {
        self.wait_for(py, timeout, |packet| PyBytes::new(py, packet))
    }

    #[pyo3(signature = (buffer, timeout=None))]
    fn read_into(&self, py: Python<'_>, buffer: &Bound<'_, PyAny>, timeout: Option<f64>) -> PyResult<usize> {
        let (buffer, len) = writable_buffer(buffer)?;
        if len == 0 {
            return self.file().map(|_| 0);
        }
        self.wait_for(py, timeout, |packet| copy_out(py, packet, &buffer, len))?
    }

    fn write(&self, py: Python<'_>, packet: &Bound<'_, PyAny>) -> PyResult<usize> {
        let file = self.file()?;
        Source::of(packet)?.with(py, |bytes| self.send(&file, bytes).map(|_| bytes.len()))?.map_err(refused)
    }

    fn read_batch<'py>(&self, py: Python<'py>, limit: usize) -> PyResult<Vec<Bound<'py, PyBytes>>> {
        let file = self.file()?;
        let mut buffer = [MaybeUninit::uninit(); BUFFER];
        let mut batch = Vec::new();
        while batch.len() < limit {
            match file.read(&mut buffer) {
                Ok(Some(packet)) if !packet.is_empty() => batch.push(PyBytes::new(py, packet)),
                // What has been read comes first; the error comes again.
                Err(errno) if batch.is_empty() => return Err(refused(errno)),
                _ => break,
            }
        }
        Ok(batch)
    }

    fn write_batch(&self, py: Python<'_>, packets: &Bound<'_, PyAny>) -> PyResult<usize> {
        let file = self.file()?;
        let (mut written, mut down) = (0, false);
        for packet in packets.try_iter()? {
            match Source::of(&packet?)?.with(py, |bytes| self.send(&file, bytes))? {
                Ok(taken) => written += usize::from(taken),
                Err(Errno::INVAL) => {}
                // The others are written all the same: the device counts them.
                Err(Errno::IO) => down = true,
                Err(errno) => return Err(refused(errno)),
            }
        }
        if down && written == 0 { Err(refused(Errno::IO)) } else { Ok(written) }
    }

    #[getter]
    fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    fn fileno(&self) -> PyResult<RawFd> {
        self.file().map(|file| file.number())
    }

    fn close(&self) {
        if let Some(file) = self.lock().take() {
            file.close();
        }
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

impl DescriptorEnd {
    /// Takes the descriptor away: this end is closed from now on.
    pub fn take(&self) -> PyResult<Arc<PacketFile>> {
        let file = self.lock().take().ok_or_else(closed)?;
        file.close();
        Ok(file)
    }

    /// Whether there was room for a packet: the newest is dropped.
    fn send(&self, file: &PacketFile, packet: &[u8]) -> Result<bool, Errno> {
        match file.write(packet) {
            Err(Errno::AGAIN | Errno::NOBUFS) => {
                self.dropped.fetch_add(1, Ordering::Relaxed);
                Ok(false)
            }
            written => written.map(|_| true),
        }
    }

    fn wait_for<R>(&self, py: Python<'_>, timeout: Option<f64>, take: impl Fn(&[u8]) -> R) -> PyResult<R> {
        let file = self.file()?;
        let mut buffer = [MaybeUninit::uninit(); BUFFER];
        let mut patience = None;
        loop {
            if let Some(packet) = file.read(&mut buffer).map_err(refused)? {
                return Ok(take(packet));
            }
            let patience = match &mut patience {
                Some(patience) => patience,
                none => none.insert(Patience::new(timeout)?),
            };
            let left = patience.left()?;
            match py.detach(|| file.wait(left)) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => py.check_signals()?,
                Err(error) => return Err(system_error(error)),
            }
            self.file()?;
        }
    }

    fn file(&self) -> PyResult<Arc<PacketFile>> {
        self.lock().clone().ok_or_else(closed)
    }

    fn lock(&self) -> MutexGuard<'_, Option<Arc<PacketFile>>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn refused(errno: Errno) -> PyErr {
    let text = match errno {
        Errno::IO => "the interface is down",
        Errno::INVAL => "not a packet of this kind of device",
        Errno::BADFD => "the device was deleted",
        Errno::PIPE => "the device has ended",
        Errno::NOTCONN => "the descriptor is attached to no interface",
        Errno::MSGSIZE => "the packet is longer than the system lets one be (net.core.wmem_max)",
        _ => "the system refuses the packet",
    };
    device_error(errno.raw_os_error(), text)
}
