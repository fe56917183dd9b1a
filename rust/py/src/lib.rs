//! The Python binding of ginnel's Rust half: one file a class. `src/ginnel/_core/*.pyi` mirrors it.

mod bridge;
mod capture;
mod control;
mod descriptor;
mod device;
mod link;
mod plane;
mod stack;

use pyo3::prelude::*;

#[pymodule]
mod _core {
    use pyo3::prelude::*;

    /// For how many threads there are processors: what the process may run on, and a container's quota.
    #[pyfunction]
    fn processors() -> usize {
        std::thread::available_parallelism().map_or(1, usize::from)
    }

    #[pymodule_export]
    use crate::bridge::Bridge;
    #[pymodule_export]
    use crate::capture::Capture;
    #[pymodule_export]
    use crate::control::ControlCipher;
    #[pymodule_export]
    use crate::descriptor::DescriptorEnd;
    #[pymodule_export]
    use crate::device::{Device, End};
    #[pymodule_export]
    use crate::link::Link;
    #[pymodule_export]
    use crate::plane::{DataChannel, DataPlane};
    #[pymodule_export]
    use crate::stack::NetStack;
}
