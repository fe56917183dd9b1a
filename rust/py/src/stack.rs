//! `ginnel._core.NetStack`.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use ginnel_core::SECOND;
use ginnel_core::netstack::address::Addresses;
use ginnel_core::netstack::ethernet::Mac;
use ginnel_core::netstack::icmp::Unreachable;
use ginnel_core::netstack::neighbours::Row;
use ginnel_core::netstack::routes::Route;
use ginnel_core::netstack::{Event, Failure};
use ginnel_io::{splice, stack};
use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyInt, PyTuple};

use crate::device::{End, POOL, mtu_error, system_error};

/// Address, hardware address, state, age in seconds.
type Neighbour = (String, Option<String>, &'static str, f64);

#[pyclass(module = "ginnel._core.stack", frozen)]
pub struct NetStack {
    inner: stack::NetStack,
}

#[pymethods]
impl NetStack {
    #[new]
    fn new(end: &End, budget: usize) -> PyResult<NetStack> {
        let end = end.take().ok_or_else(|| os_error(Failure::NoDevice))?;
        Ok(NetStack { inner: stack::NetStack::start(end, budget, &POOL).map_err(system_error)? })
    }

    fn set_addresses(&self, py: Python<'_>, addresses: Vec<String>) -> PyResult<()> {
        let parsed = Addresses::parse(addresses.iter().map(String::as_str)).map_err(|text| {
            PyValueError::new_err(format!("{text:?} is not a host's address with a prefix length"))
        })?;
        py.detach(|| self.inner.set_addresses(parsed)).map_err(os_error)
    }

    fn set_mac(&self, py: Python<'_>, mac: &str) -> PyResult<()> {
        let mac: Mac = mac.parse().map_err(|()| not_a_mac(mac))?;
        if !mac.is_station() {
            return Err(not_a_mac(&mac.to_string()));
        }
        py.detach(|| self.inner.set_mac(mac)).map_err(|failure| match failure {
            Failure::NoSuch => PyOSError::new_err((libc::EOPNOTSUPP, "a TUN device has no hardware address")),
            _ => os_error(failure),
        })
    }

    #[getter]
    fn mac(&self, py: Python<'_>) -> PyResult<Option<String>> {
        let mac = py.detach(|| self.inner.mac()).map_err(os_error)?;
        Ok(mac.map(|mac| mac.to_string()))
    }

    fn set_routes(&self, py: Python<'_>, routes: Option<Vec<(String, Option<String>)>>) -> PyResult<()> {
        let route =
            |(destination, gateway): &(String, Option<String>)| route(destination, gateway.as_deref());
        let routes: Option<Vec<Route>> =
            routes.map(|routes| routes.iter().map(route).collect::<PyResult<_>>()).transpose()?;
        py.detach(|| self.inner.set_routes(routes)).map_err(os_error)
    }

    fn add_route(&self, py: Python<'_>, destination: &str, gateway: Option<&str>) -> PyResult<()> {
        let route = route(destination, gateway)?;
        py.detach(|| self.inner.add_route(route)).map_err(os_error)
    }

    fn remove_route(&self, py: Python<'_>, destination: &str) -> PyResult<()> {
        let (prefix, _) = route(destination, None)?;
        py.detach(|| self.inner.remove_route(prefix)).map_err(os_error)
    }

    fn set_client(&self, py: Python<'_>, client: u64, networks: Vec<String>) -> PyResult<()> {
        let networks = networks.iter().map(|network| Ok(route(network, None)?.0)).collect::<PyResult<_>>()?;
        py.detach(|| self.inner.set_client(client, networks)).map_err(os_error)
    }

    fn set_mtu(&self, py: Python<'_>, mtu: &Bound<'_, PyInt>) -> PyResult<()> {
        let valid: u32 = mtu.extract().map_err(|_| mtu_error(mtu))?;
        match py.detach(|| self.inner.set_mtu(valid)).map_err(os_error)? {
            true => Ok(()),
            false => Err(mtu_error(mtu)),
        }
    }

    #[getter]
    fn mtu(&self, py: Python<'_>) -> PyResult<u32> {
        py.detach(|| self.inner.mtu()).map_err(os_error)
    }

    fn neighbours(&self, py: Python<'_>) -> PyResult<Vec<Neighbour>> {
        let rows = py.detach(|| self.inner.neighbours()).map_err(os_error)?;
        let row = |row: Row| {
            let mac = row.station.map(|mac| mac.to_string());
            (row.address.to_string(), mac, row.state.name(), row.age as f64 / SECOND as f64)
        };
        Ok(rows.into_iter().map(row).collect())
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

    fn capture_flows(&self, py: Python<'_>, idle: f64) -> PyResult<()> {
        let idle = Duration::try_from_secs_f64(idle).ok().filter(|idle| !idle.is_zero());
        let idle = idle.ok_or_else(|| PyValueError::new_err("idle is a number of seconds above 0"))?;
        py.detach(|| self.inner.capture(idle.as_nanos().try_into().unwrap_or(u64::MAX / 2))).map_err(os_error)
    }

    fn reserve(&self, py: Python<'_>, arrival: u64) -> PyResult<()> {
        py.detach(|| self.inner.reserve_arrival(arrival)).map_err(os_error)
    }

    fn accept(&self, py: Python<'_>, arrival: u64) -> PyResult<u64> {
        py.detach(|| self.inner.accept_arrival(arrival)).map_err(os_error)
    }

    fn refuse(&self, py: Python<'_>, arrival: u64, reason: &str) -> PyResult<()> {
        let why = if reason == "reset" { None } else { Some(unreachable(reason)?) };
        py.detach(|| self.inner.refuse_arrival(arrival, why));
        Ok(())
    }

    fn attach_datagram_flow(&self, py: Python<'_>, flow: u64, fd: RawFd) -> PyResult<()> {
        let socket = splice::adopt_datagrams(fd)?;
        py.detach(|| self.inner.join_association(flow, socket)).map_err(os_error)
    }

    fn refuse_datagram_flow(&self, py: Python<'_>, flow: u64, reason: &str) -> PyResult<()> {
        let why = unreachable(reason)?;
        py.detach(|| self.inner.refuse_association(flow, why));
        Ok(())
    }

    fn close_datagram_flow(&self, py: Python<'_>, flow: u64) {
        py.detach(|| self.inner.close_association(flow));
    }

    fn echo_reply(
        &self,
        py: Python<'_>,
        source: &str,
        destination: &str,
        identifier: u16,
        sequence: u16,
        payload: Vec<u8>,
    ) -> PyResult<()> {
        let ends = (address(source)?, address(destination)?);
        if ends.0.is_ipv4() != ends.1.is_ipv4() {
            return Err(PyValueError::new_err("source and destination are of different families"));
        }
        py.detach(|| self.inner.answer_echo(ends, (identifier, sequence), payload)).map_err(os_error)
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

impl NetStack {
    /// The stack itself.
    pub fn inner(&self) -> &stack::NetStack {
        &self.inner
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
        Event::Arrived { arrival, source, destination } => {
            captured("arrived", arrival, source, destination).into_pyobject(py)
        }
        Event::Withdrawn { arrival } => ("withdrawn", arrival).into_pyobject(py),
        Event::Datagrams { association, source, destination } => {
            captured("datagram_flow", association, source, destination).into_pyobject(py)
        }
        Event::DatagramsEnded { association } => ("datagram_flow_ended", association).into_pyobject(py),
        Event::Echo { source, destination, identifier, sequence, payload } => {
            let (source, destination) = (source.to_string(), destination.to_string());
            ("echo", source, destination, identifier, sequence, PyBytes::new(py, &payload)).into_pyobject(py)
        }
    }
}

fn captured(
    kind: &'static str,
    number: u64,
    source: SocketAddr,
    destination: SocketAddr,
) -> (&'static str, u64, String, u16, String, u16) {
    let (host, port) = (source.ip().to_string(), source.port());
    (kind, number, host, port, destination.ip().to_string(), destination.port())
}

fn route(destination: &str, gateway: Option<&str>) -> PyResult<Route> {
    let prefix = destination.parse().map_err(|()| {
        PyValueError::new_err(format!("{destination:?} is not an address with a prefix length"))
    })?;
    let gateway = gateway.map(address).transpose()?;
    if gateway.is_some_and(|gateway| gateway.is_ipv6() != destination.contains(':')) {
        let message = format!("the gateway to {destination} is not of its family");
        return Err(PyValueError::new_err(message));
    }
    Ok((prefix, gateway))
}

fn unreachable(reason: &str) -> PyResult<Unreachable> {
    match reason {
        "network" => Ok(Unreachable::Network),
        "host" => Ok(Unreachable::Host),
        "port" => Ok(Unreachable::Port),
        "prohibited" => Ok(Unreachable::Prohibited),
        _ => {
            Err(PyValueError::new_err(format!("reason {reason:?}; write network, host, port or prohibited")))
        }
    }
}

fn not_a_mac(text: &str) -> PyErr {
    PyValueError::new_err(format!("{text:?} is not a station's hardware address; write aa:bb:cc:dd:ee:ff"))
}

fn address(text: &str) -> PyResult<IpAddr> {
    text.parse().map_err(|_| PyValueError::new_err(format!("{text:?} is not an IP address")))
}

fn os_error(failure: Failure) -> PyErr {
    let number = errno(failure);
    PyOSError::new_err((number, words(number)))
}

/// What the system calls an error, as Python words it.
pub fn words(number: i32) -> String {
    let text = std::io::Error::from_raw_os_error(number).to_string();
    text.split(" (os error").next().unwrap_or_default().to_owned()
}

fn errno(failure: Failure) -> i32 {
    stack::errno(failure)
}
