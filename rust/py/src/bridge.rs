//! `ginnel._core.Bridge`.

use std::hash::{BuildHasher, RandomState};
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use ginnel_core::SECOND;
use ginnel_io::bridge::{Snapshot, Switch};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::descriptor::DescriptorEnd;
use crate::device::{End, POOL, device_error, system_error};

#[pyclass(module = "ginnel._core.bridge", frozen)]
pub struct Bridge {
    inner: Switch,
}

#[pymethods]
impl Bridge {
    #[new]
    fn new(stations: usize, ageing: f64) -> PyResult<Bridge> {
        let ageing = Duration::try_from_secs_f64(ageing).ok().filter(|ageing| !ageing.is_zero());
        let ageing = ageing.ok_or_else(|| PyValueError::new_err("ageing is a number of seconds above 0"))?;
        if stations == 0 {
            return Err(PyValueError::new_err("a bridge knows at least one station"));
        }
        let ageing = ageing.as_nanos().try_into().unwrap_or(u64::MAX);
        let random = RandomState::new().hash_one(0u8);
        Ok(Bridge { inner: Switch::start(stations, ageing, random, &POOL).map_err(system_error)? })
    }

    fn add(&self, py: Python<'_>, end: &End) -> PyResult<u64> {
        let end = end.take().ok_or_else(|| device_error(libc::EBADFD, "this end of the device is closed"))?;
        py.detach(|| self.inner.add(end))
            .map_err(|errno| device_error(errno.raw_os_error(), "this end cannot be a port of the bridge"))
    }

    fn add_descriptor(&self, py: Python<'_>, end: &DescriptorEnd) -> PyResult<u64> {
        let file = end.take()?;
        py.detach(|| self.inner.add_file(file))
            .map_err(|errno| device_error(errno.raw_os_error(), "this end cannot be a port of the bridge"))
    }

    fn remove(&self, py: Python<'_>, port: u64) -> bool {
        py.detach(|| self.inner.remove(port))
    }

    fn ports<'py>(&self, py: Python<'py>) -> PyResult<Vec<(u64, bool, Bound<'py, PyDict>)>> {
        let row = |(port, blocked, counters): (u64, bool, ginnel_core::bridge::PortCounters)| {
            let dict = PyDict::new(py);
            counters.entries().into_iter().try_for_each(|(name, value)| dict.set_item(name, value))?;
            Ok((port, blocked, dict))
        };
        self.snapshot(py)?.ports.into_iter().map(row).collect()
    }

    fn stations(&self, py: Python<'_>) -> PyResult<Vec<(String, u64, f64)>> {
        let stations = self.snapshot(py)?.stations.into_iter();
        Ok(stations.map(|(mac, port, age)| (mac.to_string(), port, age as f64 / SECOND as f64)).collect())
    }

    #[getter]
    fn crowded(&self, py: Python<'_>) -> PyResult<u64> {
        Ok(self.snapshot(py)?.crowded)
    }

    fn loops(&self, py: Python<'_>) -> Vec<(u64, String)> {
        let loops = py.detach(|| self.inner.loops());
        loops.into_iter().map(|closed| (closed.port, closed.station.to_string())).collect()
    }

    fn fileno(&self) -> RawFd {
        self.inner.readiness().as_raw_fd()
    }

    fn close(&self, py: Python<'_>) {
        py.detach(|| self.inner.close());
    }
}

impl Bridge {
    fn snapshot(&self, py: Python<'_>) -> PyResult<Snapshot> {
        let snapshot = py.detach(|| self.inner.snapshot());
        snapshot.ok_or_else(|| device_error(libc::EBADFD, "the bridge is closed"))
    }
}
