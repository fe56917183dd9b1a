//! `ginnel._core.NetStack`.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, RawFd};

use ginnel_core::netstack::address::Addresses;
use ginnel_core::netstack::{Event, Failure};
use ginnel_io::{splice, stack};
use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyTuple};

use crate::device::{End, POOL};

#[pyclass(module = "ginnel._core.stack", frozen)]
pub struct NetStack {
    inner: stack::NetStack,
}

#[pymethods]
impl NetStack {
    #[new]
    fn new(end: &End, budget: usize) -> PyResult<NetStack> {
        let end = end.take().ok_or_else(|| os_error(Failure::NoDevice))?;
        Ok(NetStack { inner: stack::NetStack::start(end, budget, &POOL)? })
    }

    fn set_addresses(&self, py: Python<'_>, addresses: Vec<String>) -> PyResult<()> {
        let parsed = Addresses::parse(addresses.iter().map(String::as_str)).map_err(|text| {
            PyValueError::new_err(format!("{text:?} is not a host's address with a prefix length"))
        })?;
        py.detach(|| self.inner.set_addresses(parsed)).map_err(os_error)
    }

    fn connect(&self, py: Python<'_>, host: &str, port: u16) -> PyResult<u64> {
        let remote = SocketAddr::new(address(host)?, port);
        py.detach(|| self.inner.connect(remote)).map_err(os_error)
    }

    fn attach(&self, py: Python<'_>, flow: u64, fd: RawFd) -> PyResult<()> {
        let socket = splice::adopt_stream(fd)?;
        py.detach(|| self.inner.attach(flow, socket)).map_err(os_error)
    }

    fn abort(&self, py: Python<'_>, flow: u64) {
        py.detach(|| self.inner.abort(flow));
    }

    fn listen(&self, py: Python<'_>, host: Option<&str>, port: u16, backlog: usize) -> PyResult<(u64, u16)> {
        let host = host.map(address).transpose()?;
        py.detach(|| self.inner.listen(host, port, backlog)).map_err(os_error)
    }

    fn close_listener(&self, py: Python<'_>, listener: u64) {
        py.detach(|| self.inner.close_listener(listener));
    }

    fn open_datagram(
        &self,
        py: Python<'_>,
        host: Option<&str>,
        port: u16,
        fd: RawFd,
    ) -> PyResult<(u64, u16)> {
        let host = host.map(address).transpose()?;
        let socket = splice::adopt_messages(fd)?;
        py.detach(|| self.inner.open_datagram(host, port, socket)).map_err(os_error)
    }

    fn close_datagram(&self, py: Python<'_>, datagram: u64) {
        py.detach(|| self.inner.close_datagram(datagram));
    }

    fn ping(
        &self,
        py: Python<'_>,
        host: &str,
        identifier: u16,
        sequence: u16,
        payload: Vec<u8>,
    ) -> PyResult<()> {
        let host = address(host)?;
        py.detach(|| self.inner.ping(host, identifier, sequence, payload)).map_err(os_error)
    }

    fn events<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyTuple>>> {
        self.inner.events().into_iter().map(|event| event_tuple(py, event)).collect()
    }

    fn fileno(&self) -> RawFd {
        self.inner.readiness().as_raw_fd()
    }

    fn statistics<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let all = py.detach(|| self.inner.statistics()).map_err(os_error)?;
        let numbers = PyDict::new(py);
        for (name, value) in all {
            numbers.set_item(name, value)?;
        }
        Ok(numbers)
    }

    fn close(&self, py: Python<'_>) {
        py.detach(|| self.inner.close());
    }
}

fn event_tuple(py: Python<'_>, event: Event) -> PyResult<Bound<'_, PyTuple>> {
    match event {
        Event::Connected { flow, local } => {
            ("connected", flow, local.ip().to_string(), local.port()).into_pyobject(py)
        }
        Event::Failed { flow, failure } => ("failed", flow, errno(failure)).into_pyobject(py),
        Event::Accepted { listener, flow, remote, local } => {
            let (host, own) = (remote.ip().to_string(), local.ip().to_string());
            ("accepted", listener, flow, host, remote.port(), own, local.port()).into_pyobject(py)
        }
        Event::Closed { flow, failure } => ("closed", flow, failure.map_or(0, errno)).into_pyobject(py),
        Event::Pong { host, identifier, sequence, payload } => {
            let payload = PyBytes::new(py, &payload);
            ("pong", host.to_string(), identifier, sequence, payload).into_pyobject(py)
        }
    }
}

fn address(text: &str) -> PyResult<IpAddr> {
    text.parse().map_err(|_| PyValueError::new_err(format!("{text:?} is not an IP address")))
}

fn os_error(failure: Failure) -> PyErr {
    let number = errno(failure);
    PyOSError::new_err((number, std::io::Error::from_raw_os_error(number).to_string()))
}

fn errno(failure: Failure) -> i32 {
    stack::errno(failure)
}
