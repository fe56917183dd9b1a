//! `ginnel._core.ControlCipher`.

use ginnel_core::control::{self, KEY_LEN};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

#[pyclass(module = "ginnel._core.control", frozen)]
pub struct ControlCipher {
    inner: control::ControlCipher,
}

#[pymethods]
impl ControlCipher {
    #[new]
    fn new(cipher: &[u8], mac: &[u8]) -> PyResult<ControlCipher> {
        Ok(ControlCipher { inner: control::ControlCipher::new(sized(cipher)?, sized(mac)?) })
    }

    fn seal<'py>(&self, py: Python<'py>, head: &[u8], body: &[u8]) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.inner.seal(head, body))
    }

    fn open<'py>(&self, py: Python<'py>, head: &[u8], sealed: &[u8]) -> Option<Bound<'py, PyBytes>> {
        self.inner.open(head, sealed).map(|body| PyBytes::new(py, &body))
    }
}

fn sized(key: &[u8]) -> PyResult<&[u8; KEY_LEN]> {
    key.try_into().map_err(|_| PyValueError::new_err("a key has 32 bytes"))
}
