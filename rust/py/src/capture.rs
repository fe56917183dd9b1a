//! `ginnel._core.Capture`.

use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};

use ginnel_io::capture::{self, Direction};
use ginnel_io::splice::adopt_file;
use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::device::{Device, parse_kind};
use crate::plane::DataPlane;
use crate::stack::words;

#[pyclass(module = "ginnel._core.device", frozen)]
pub struct Capture {
    inner: capture::Capture,
}

#[pymethods]
impl Capture {
    #[new]
    fn new(py: Python<'_>, fd: RawFd, kind: &str, name: &str) -> PyResult<Capture> {
        let file = File::from(adopt_file(fd)?);
        let kind = parse_kind(kind)?;
        let started = py.detach(|| capture::Capture::start(file, kind, name));
        Ok(Capture { inner: started.map_err(refused)? })
    }

    #[pyo3(signature = (device, name=None))]
    fn observe(&self, device: &Device, name: Option<&str>) {
        self.inner.observe(device.inner(), name);
    }

    fn observe_plane(&self, plane: &DataPlane) -> PyResult<()> {
        let Some(observers) = plane.observers() else {
            return Err(PyValueError::new_err("its device is in memory; observe that"));
        };
        self.inner.observe_kernel(observers);
        Ok(())
    }

    fn note(&self, packet: &[u8], outbound: bool) {
        self.inner.note(packet, if outbound { Direction::Outbound } else { Direction::Inbound });
    }

    fn statistics<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let statistics = self.inner.statistics();
        let dict = PyDict::new(py);
        dict.set_item("packets", statistics.packets)?;
        dict.set_item("dropped", statistics.dropped)?;
        dict.set_item("lost", statistics.lost)?;
        Ok(dict)
    }

    fn failure(&self) -> Option<i32> {
        self.inner.failure()
    }

    fn fileno(&self) -> RawFd {
        self.inner.readiness().as_raw_fd()
    }

    fn close(&self, py: Python<'_>) {
        py.detach(|| self.inner.close());
    }
}

fn refused(error: std::io::Error) -> PyErr {
    let number = error.raw_os_error().unwrap_or(libc::EIO);
    PyOSError::new_err((number, words(number)))
}
