//! `ginnel._core.Link`.

use std::os::fd::{AsRawFd, RawFd};

use ginnel_io::link::{self, NotJoined};
use ginnel_io::splice::adopt_messages;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::device::{Device, POOL, device_error, parse_side, system_error};
use crate::stack::NetStack;

#[pyclass(module = "ginnel._core.device", frozen)]
pub struct Link {
    inner: link::Link,
}

#[pymethods]
impl Link {
    #[new]
    #[pyo3(signature = (device, side, stack=None))]
    fn new(device: &Device, side: &str, stack: Option<&NetStack>) -> PyResult<Link> {
        let (device, side) = (device.inner().clone(), parse_side(side)?);
        let inner = match stack {
            Some(stack) => link::Link::with_stack(device, side, &POOL, stack.inner()),
            None => link::Link::start(device, side, &POOL),
        };
        Ok(Link { inner: inner.map_err(system_error)? })
    }

    fn add(&self, py: Python<'_>, fd: RawFd, packet_info: bool) -> PyResult<u64> {
        let descriptor = adopt_messages(fd).map_err(system_error)?;
        py.detach(|| self.inner.add(descriptor, packet_info)).map_err(not_joined)
    }

    fn set_enabled(&self, py: Python<'_>, number: u64, enabled: bool) -> PyResult<()> {
        match py.detach(|| self.inner.set_enabled(number, enabled)).map_err(not_joined)? {
            true => Ok(()),
            false => Err(unknown(number)),
        }
    }

    fn set_packet_info(&self, py: Python<'_>, number: u64, packet_info: bool) -> PyResult<()> {
        match py.detach(|| self.inner.set_packet_info(number, packet_info)) {
            true => Ok(()),
            false => Err(unknown(number)),
        }
    }

    fn remove(&self, py: Python<'_>, number: u64) {
        py.detach(|| self.inner.remove(number));
    }

    fn events(&self, py: Python<'_>) -> Vec<(&'static str, u64)> {
        py.detach(|| self.inner.gone()).into_iter().map(|number| ("gone", number)).collect()
    }

    fn fileno(&self) -> RawFd {
        self.inner.readiness().as_raw_fd()
    }

    fn close(&self, py: Python<'_>) {
        py.detach(|| self.inner.close());
    }
}

pub fn not_joined(error: NotJoined) -> PyErr {
    match error {
        NotJoined::Gone => device_error(libc::EBADFD, "the device was deleted"),
        NotJoined::Busy => device_error(libc::EBUSY, "somebody holds this end of the device"),
        NotJoined::TooMany => device_error(libc::E2BIG, "the device has 256 descriptors already"),
        NotJoined::Descriptor(errno) => system_error(errno.into()),
    }
}

fn unknown(number: u64) -> PyErr {
    PyValueError::new_err(format!("the link has no descriptor {number}"))
}
