//! `ginnel._core.DescriptorEnd`.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::RawFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ginnel_io::packet_file::{BUFFER, PacketFile};
use pyo3::buffer::PyBuffer;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyTuple};
use rustix::io::Errno;

use crate::device::{Patience, closed, copy_out, device_error, system_error, writable_buffer};

#[pyclass(module = "ginnel._core", frozen)]
pub struct DescriptorEnd {
    held: Mutex<Option<Arc<PacketFile>>>,
}

#[pymethods]
impl DescriptorEnd {
    #[new]
    fn new(fd: RawFd) -> PyResult<DescriptorEnd> {
        Ok(DescriptorEnd { held: Mutex::new(Some(Arc::new(PacketFile::adopt(fd).map_err(system_error)?))) })
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
        with_bytes(py, packet, |bytes| file.write(bytes))?.map_err(refused)
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
        let mut written = 0;
        for packet in packets.try_iter()? {
            match with_bytes(py, &packet?, |bytes| file.write(bytes))? {
                Ok(_) => written += 1,
                Err(Errno::INVAL) => {}
                Err(Errno::AGAIN) if written > 0 => break,
                Err(errno) => return Err(refused(errno)),
            }
        }
        Ok(written)
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

/// Gives `work` the bytes of an object, wherever they lie.
fn with_bytes<R>(py: Python<'_>, object: &Bound<'_, PyAny>, work: impl FnOnce(&[u8]) -> R) -> PyResult<R> {
    match object.cast::<PyBytes>() {
        Ok(bytes) => Ok(work(bytes.as_bytes())),
        Err(_) => Ok(work(&PyBuffer::<u8>::get(object)?.to_vec(py)?)),
    }
}

fn refused(errno: Errno) -> PyErr {
    let text = match errno {
        Errno::IO => "the interface is down".to_owned(),
        Errno::INVAL => "not a packet of this kind of device".to_owned(),
        Errno::BADFD => "the device was deleted".to_owned(),
        Errno::AGAIN => "the other side does not keep up".to_owned(),
        other => io::Error::from(other).to_string(),
    };
    device_error(errno.raw_os_error(), &text)
}
