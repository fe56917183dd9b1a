//! `DataPlane` and `DataChannel`: the OpenVPN data plane with and without sockets.

use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ginnel_core::cipher::MATERIAL_LEN;
use ginnel_core::device::Kind;
use ginnel_core::format::Format;
use ginnel_core::framing::Framing;
use ginnel_core::packet::{LocalPool, MAX_LEN};
use ginnel_core::plane::{self, CommandError, Datagram, Event, Guard, Lock, Plane, Prefix};
use ginnel_core::{Nanos, SECOND};
use ginnel_io::inner::Inner;
use ginnel_io::pump::{Pump, Threads, UnknownSocket};
use ginnel_io::tun::{Observers, Tun};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyTuple};

use crate::device::{End, POOL, device_error, system_error};

#[pyclass(module = "ginnel._core", frozen)]
pub struct DataPlane {
    pump: Pump,
}

#[pymethods]
impl DataPlane {
    #[new]
    #[pyo3(signature = (end, *, lanes=1, apart=false))]
    fn new(end: &End, lanes: usize, apart: bool) -> PyResult<DataPlane> {
        let Some(end) = end.take() else {
            return Err(device_error(libc::EBADFD, "this end of the device is closed"));
        };
        Ok(DataPlane {
            pump: Pump::start(Inner::memory(end), Threads { lanes, apart }, POOL.clone())
                .map_err(system_error)?,
        })
    }

    #[staticmethod]
    #[pyo3(signature = (queues, kind, vnet_header, udp_offload, *, apart=false))]
    fn on_kernel_device(
        queues: Vec<i32>,
        kind: &str,
        vnet_header: bool,
        udp_offload: bool,
        apart: bool,
    ) -> PyResult<DataPlane> {
        let kind = match kind {
            "tun" => Kind::Tun,
            "tap" => Kind::Tap,
            _ => return Err(PyValueError::new_err(format!("device kind {kind:?}; write 'tun' or 'tap'"))),
        };
        let observers = Arc::default();
        let adopt = |fd| Tun::adopt(fd, kind, vnet_header, udp_offload, &observers);
        let tuns = queues.into_iter().map(adopt).collect::<Result<Vec<_>, _>>()?;
        if tuns.is_empty() {
            return Err(PyValueError::new_err("a device has at least one queue"));
        }
        let threads = Threads { lanes: tuns.len(), apart };
        Ok(DataPlane { pump: Pump::start(Inner::Kernel(tuns), threads, POOL.clone()).map_err(system_error)? })
    }

    #[getter]
    fn lanes(&self) -> usize {
        self.pump.lanes()
    }

    #[pyo3(signature = (fd, header=Vec::new()))]
    fn add_udp(&self, py: Python<'_>, fd: i32, header: Vec<u8>) -> PyResult<u64> {
        Ok(py.detach(|| self.pump.add_udp(fd, header))?)
    }

    fn add_tcp(&self, py: Python<'_>, fd: i32) -> PyResult<u64> {
        Ok(py.detach(|| self.pump.add_tcp(fd))?)
    }

    fn remove_socket(&self, py: Python<'_>, socket: u64) -> PyResult<()> {
        py.detach(|| self.pump.remove_socket(socket)).map_err(|error| unknown_socket(error, socket))
    }

    #[pyo3(signature = (peer, path, peer_id))]
    fn new_peer(&self, py: Python<'_>, peer: u32, path: Path, peer_id: Option<u32>) -> PyResult<()> {
        py.detach(|| self.pump.new_peer(peer, path.0, peer_id)).map_err(command_error)
    }

    #[pyo3(signature = (peer, ping, ping_restart, mss, framing=""))]
    fn set_peer(
        &self,
        py: Python<'_>,
        peer: u32,
        ping: f64,
        ping_restart: f64,
        mss: u16,
        framing: &str,
    ) -> PyResult<()> {
        let (ping, ping_restart, framing) = (nanos(ping)?, nanos(ping_restart)?, to_framing(framing)?);
        self.command(py, move |plane, now| plane.set_peer(peer, ping, ping_restart, mss, framing, now))
    }

    fn del_peer(&self, py: Python<'_>, peer: u32) -> PyResult<()> {
        self.command(py, move |plane, _| plane.del_peer(peer))
    }

    #[allow(clippy::too_many_arguments)]
    #[pyo3(signature = (peer, handle, key_id, cipher, encrypt, decrypt, *, auth="none", epochs=false))]
    fn new_key(
        &self,
        py: Python<'_>,
        peer: u32,
        handle: u64,
        key_id: u8,
        cipher: &str,
        encrypt: &[u8],
        decrypt: &[u8],
        auth: &str,
        epochs: bool,
    ) -> PyResult<()> {
        let format = to_format(cipher, auth, epochs)?;
        let (encrypt, decrypt) = (key_half(encrypt)?, key_half(decrypt)?);
        self.command(py, move |plane, _| plane.new_key(peer, handle, key_id, format, encrypt, decrypt))
    }

    fn del_key(&self, py: Python<'_>, peer: u32, handle: u64) -> PyResult<()> {
        self.command(py, move |plane, _| plane.del_key(peer, handle))
    }

    fn swap(&self, py: Python<'_>, peer: u32, handle: u64) -> PyResult<()> {
        self.command(py, move |plane, _| plane.swap(peer, handle))
    }

    #[pyo3(signature = (peer, routes, sources))]
    fn set_routes(
        &self,
        py: Python<'_>,
        peer: u32,
        routes: Vec<String>,
        sources: Option<Vec<String>>,
    ) -> PyResult<()> {
        let (routes, sources) = (prefixes(routes)?, sources.map(prefixes).transpose()?);
        self.command(py, move |plane, _| plane.set_routes(peer, &routes, sources.as_deref()))
    }

    fn limit_strangers(&self, py: Python<'_>, most: u64, period: f64) -> PyResult<()> {
        let period = nanos(period)?;
        self.command(py, move |plane, now| {
            plane.limit_strangers(most, period, now);
            Ok(())
        })
    }

    fn guard_strangers(&self, py: Python<'_>, locks: Vec<(String, Vec<u8>)>) -> PyResult<()> {
        let locks: Option<_> = locks.iter().map(|(kind, key)| Lock::new(kind, key)).collect();
        let guard =
            Guard::new(locks.ok_or_else(|| PyValueError::new_err("no lock of that kind and length"))?);
        self.command(py, move |plane, _| {
            plane.guard_strangers(guard);
            Ok(())
        })
    }

    fn set_relaying(&self, py: Python<'_>, relaying: bool) -> PyResult<()> {
        self.command(py, move |plane, _| {
            plane.set_relaying(relaying);
            Ok(())
        })
    }

    fn send_control(&self, py: Python<'_>, data: &[u8], path: Path) -> PyResult<()> {
        check_len(data)?;
        let sent = py.detach(|| self.pump.send_control(data, path.0));
        sent.map_err(|error| unknown_socket(error, path.0.socket))
    }

    fn send_data_message(&self, py: Python<'_>, peer: u32, data: &[u8]) -> PyResult<()> {
        check_len(data)?;
        py.detach(|| self.pump.send_data_message(peer, data)).map_err(command_error)
    }

    fn events<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyTuple>>> {
        let events = py.detach(|| self.pump.events());
        events.into_iter().map(|event| event_tuple(py, event)).collect()
    }

    fn fileno(&self) -> i32 {
        self.pump.events_descriptor().as_raw_fd()
    }

    fn statistics<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        dict(py, py.detach(|| self.pump.statistics()))
    }

    fn peer_statistics<'py>(&self, py: Python<'py>, peer: u32) -> PyResult<Bound<'py, PyDict>> {
        let counters = py.detach(|| self.pump.peer_statistics(peer)).map_err(command_error)?;
        dict(py, counters.entries())
    }

    fn close(&self, py: Python<'_>) {
        py.detach(|| self.pump.close());
    }
}

impl DataPlane {
    pub fn observers(&self) -> Option<&Arc<Observers>> {
        self.pump.observers()
    }

    fn command(
        &self,
        py: Python<'_>,
        command: impl FnOnce(&Plane, Nanos) -> Result<(), CommandError> + Send,
    ) -> PyResult<()> {
        py.detach(|| self.pump.command(command)).map_err(command_error)
    }
}

#[pyclass(module = "ginnel._core", frozen)]
pub struct DataChannel {
    state: Mutex<State>,
}

struct State {
    plane: Plane,
    pool: LocalPool,
}

#[pymethods]
impl DataChannel {
    #[new]
    fn new() -> DataChannel {
        DataChannel { state: Mutex::new(State { plane: Plane::new(Kind::Tun, 1), pool: POOL.local() }) }
    }

    #[pyo3(signature = (peer, path, peer_id, now))]
    fn new_peer(&self, peer: u32, path: Path, peer_id: Option<u32>, now: f64) -> PyResult<()> {
        let now = nanos(now)?;
        self.lock().plane.new_peer(peer, path.0, peer_id, now).map_err(command_error)
    }

    #[pyo3(signature = (peer, ping, ping_restart, mss, now, framing=""))]
    fn set_peer(
        &self,
        peer: u32,
        ping: f64,
        ping_restart: f64,
        mss: u16,
        now: f64,
        framing: &str,
    ) -> PyResult<()> {
        let (ping, ping_restart, now) = (nanos(ping)?, nanos(ping_restart)?, nanos(now)?);
        let framing = to_framing(framing)?;
        self.lock().plane.set_peer(peer, ping, ping_restart, mss, framing, now).map_err(command_error)
    }

    fn del_peer(&self, peer: u32) -> PyResult<()> {
        self.lock().plane.del_peer(peer).map_err(command_error)
    }

    #[allow(clippy::too_many_arguments)]
    #[pyo3(signature = (peer, handle, key_id, cipher, encrypt, decrypt, *, auth="none", epochs=false))]
    fn new_key(
        &self,
        peer: u32,
        handle: u64,
        key_id: u8,
        cipher: &str,
        encrypt: &[u8],
        decrypt: &[u8],
        auth: &str,
        epochs: bool,
    ) -> PyResult<()> {
        let format = to_format(cipher, auth, epochs)?;
        let (encrypt, decrypt) = (key_half(encrypt)?, key_half(decrypt)?);
        self.lock().plane.new_key(peer, handle, key_id, format, encrypt, decrypt).map_err(command_error)
    }

    fn del_key(&self, peer: u32, handle: u64) -> PyResult<()> {
        self.lock().plane.del_key(peer, handle).map_err(command_error)
    }

    fn swap(&self, peer: u32, handle: u64) -> PyResult<()> {
        self.lock().plane.swap(peer, handle).map_err(command_error)
    }

    #[pyo3(signature = (peer, routes, sources))]
    fn set_routes(&self, peer: u32, routes: Vec<String>, sources: Option<Vec<String>>) -> PyResult<()> {
        let (routes, sources) = (prefixes(routes)?, sources.map(prefixes).transpose()?);
        self.lock().plane.set_routes(peer, &routes, sources.as_deref()).map_err(command_error)
    }

    fn send_data_message<'py>(
        &self,
        py: Python<'py>,
        peer: u32,
        data: &[u8],
        now: f64,
    ) -> PyResult<Vec<Sealed<'py>>> {
        check_len(data)?;
        let now = nanos(now)?;
        let State { plane, pool } = &mut *self.lock();
        let datagram = plane.data_message(peer, data, now, pool).map_err(command_error)?;
        Ok(sealed(py, datagram, pool))
    }

    fn send_packet<'py>(&self, py: Python<'py>, packet: &[u8], now: f64) -> PyResult<Vec<Sealed<'py>>> {
        check_len(packet)?;
        let now = nanos(now)?;
        let State { plane, pool } = &mut *self.lock();
        let packet = pool.packet_from(packet);
        Ok(sealed(py, plane.seal(packet, now, pool), pool))
    }

    fn receive_datagram<'py>(
        &self,
        py: Python<'py>,
        data: &[u8],
        path: Path,
        now: f64,
    ) -> PyResult<Vec<Bound<'py, PyBytes>>> {
        let now = nanos(now)?;
        let State { plane, pool } = &mut *self.lock();
        let packet = plane.open(data, path.0, now, &mut Vec::new(), pool);
        let packets = packet.iter().map(|packet| PyBytes::new(py, packet)).collect();
        pool.recycle_all(packet);
        Ok(packets)
    }

    fn get_timer(&self) -> Option<f64> {
        self.lock().plane.next_timer().map(|timer| timer as f64 / SECOND as f64)
    }

    fn handle_timer<'py>(&self, py: Python<'py>, now: f64) -> PyResult<Vec<Sealed<'py>>> {
        let now = nanos(now)?;
        let State { plane, pool } = &mut *self.lock();
        let mut datagrams = Vec::new();
        plane.handle_timer(now, &mut datagrams, pool);
        Ok(sealed(py, datagrams, pool))
    }

    fn events<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyTuple>>> {
        let events = self.lock().plane.take_events();
        events.into_iter().map(|event| event_tuple(py, event)).collect()
    }

    fn statistics<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let entries = self.lock().plane.counters().entries();
        dict(py, entries)
    }

    fn peer_statistics<'py>(&self, py: Python<'py>, peer: u32) -> PyResult<Bound<'py, PyDict>> {
        let counters = self.lock().plane.peer_counters(peer).map_err(command_error)?;
        dict(py, counters.entries())
    }
}

impl DataChannel {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

type Sealed<'py> = (Bound<'py, PyBytes>, Path);

/// A path as Python writes it: socket number, IP address as text, port.
#[derive(Clone, Copy)]
struct Path(plane::Path);

impl<'py> FromPyObject<'_, 'py> for Path {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Path> {
        let (socket, ip, port): (u64, String, u16) = object.extract()?;
        let (ip, scope) = match ip.split_once('%') {
            Some((address, scope)) => (address.parse(), scope.parse().ok()),
            None => (ip.parse(), Some(0)),
        };
        let address = match (ip.map(|ip: IpAddr| ip.to_canonical()), scope) {
            (Ok(IpAddr::V6(ip)), Some(scope)) => SocketAddrV6::new(ip, port, 0, scope).into(),
            (Ok(ip @ IpAddr::V4(_)), Some(0)) => SocketAddr::new(ip, port),
            _ => {
                return Err(PyValueError::new_err(
                    "a path's address is an IP address, with % and a number for its scope",
                ));
            }
        };
        Ok(Path(plane::Path { socket, address }))
    }
}

impl<'py> IntoPyObject<'py> for Path {
    type Target = PyTuple;
    type Output = Bound<'py, PyTuple>;
    type Error = PyErr;

    fn into_pyobject(self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        let plane::Path { socket, address } = self.0;
        let ip = match address {
            SocketAddr::V6(v6) if v6.scope_id() != 0 => format!("{}%{}", v6.ip(), v6.scope_id()),
            _ => address.ip().to_string(),
        };
        (socket, ip, address.port()).into_pyobject(py)
    }
}

fn event_tuple(py: Python<'_>, event: Event) -> PyResult<Bound<'_, PyTuple>> {
    match event {
        Event::Control { data, path } => ("control", PyBytes::new(py, &data), Path(path)).into_pyobject(py),
        Event::DataMessage { peer, data } => {
            ("data_message", peer, PyBytes::new(py, &data)).into_pyobject(py)
        }
        Event::Float { peer, path } => ("float", peer, Path(path)).into_pyobject(py),
        Event::Expired { peer } => ("expired", peer).into_pyobject(py),
        Event::KeyLimit { peer, handle } => ("key_limit", peer, handle).into_pyobject(py),
        Event::Closed { path, errno } => ("closed", Path(path), errno).into_pyobject(py),
        Event::DeviceClosed { errno } => ("device_closed", errno).into_pyobject(py),
    }
}

fn sealed<'py>(
    py: Python<'py>,
    datagrams: impl IntoIterator<Item = Datagram>,
    pool: &mut LocalPool,
) -> Vec<Sealed<'py>> {
    let datagrams = datagrams.into_iter().map(|Datagram { packet, path }| {
        let bytes = PyBytes::new(py, &packet);
        pool.recycle(packet);
        (bytes, Path(path))
    });
    datagrams.collect()
}

fn dict<'py>(py: Python<'py>, entries: Vec<(&'static str, u64)>) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    entries.into_iter().try_for_each(|(name, value)| dict.set_item(name, value))?;
    Ok(dict)
}

fn to_format(cipher: &str, auth: &str, epochs: bool) -> PyResult<Format> {
    Format::from_names(cipher, auth, epochs).ok_or_else(|| {
        let with = if epochs { "epochs".to_owned() } else { format!("auth {auth:?}") };
        PyValueError::new_err(format!("data channel cipher {cipher:?} with {with} is not supported"))
    })
}

fn to_framing(name: &str) -> PyResult<Framing> {
    Framing::from_name(name).ok_or_else(|| PyValueError::new_err(format!("{name:?} is no framing")))
}

fn key_half(material: &[u8]) -> PyResult<&[u8; MATERIAL_LEN]> {
    let wrong = |_| PyValueError::new_err(format!("each half of a data key has {MATERIAL_LEN} bytes"));
    material.try_into().map_err(wrong)
}

fn prefixes(texts: Vec<String>) -> PyResult<Vec<Prefix>> {
    let wrong = |text: &String| PyValueError::new_err(format!("{text:?} is not an IP prefix"));
    texts.iter().map(|text| text.parse().map_err(|()| wrong(text))).collect()
}

/// Seconds as nanoseconds; what is longer than the clock runs is for ever.
fn nanos(seconds: f64) -> PyResult<Nanos> {
    if seconds.is_nan() || seconds < 0.0 {
        return Err(PyValueError::new_err(format!("{seconds} is no number of seconds")));
    }
    Ok((seconds * SECOND as f64).round() as Nanos)
}

fn check_len(data: &[u8]) -> PyResult<()> {
    if data.len() > MAX_LEN {
        return Err(PyValueError::new_err(format!("{} bytes are more than a packet holds", data.len())));
    }
    Ok(())
}

fn command_error(error: CommandError) -> PyErr {
    PyValueError::new_err(match error {
        CommandError::UnknownPeer => "the data plane has no peer of this number",
        CommandError::PeerExists => "the data plane has a peer of this number already",
        CommandError::PeerId => "a peer id has 24 bits",
        CommandError::UnknownKey => "the peer has no keys of this handle",
        CommandError::KeyExists => "the peer has keys of this handle already",
        CommandError::KeyId => "a key id is 0 to 7",
    })
}

fn unknown_socket(_: UnknownSocket, number: u64) -> PyErr {
    PyValueError::new_err(format!("the data plane never had a socket {number}"))
}
