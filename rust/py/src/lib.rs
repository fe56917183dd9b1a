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
