//! ginnel's loops and system calls. All of ginnel's unsafe code stands here, each with its reason.

pub mod bridge;
pub mod calls;
pub mod capture;
mod handed;
pub mod inner;
pub mod link;
pub mod packet_file;
pub mod pollable;
pub mod prompt;
pub mod pump;
pub mod seqpacket;
pub mod socket;
pub mod splice;
pub mod stack;
pub mod tcp;
pub mod tun;
pub mod udp;
pub mod wake;
