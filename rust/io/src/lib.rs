//! ginnel's loops and system calls. All of ginnel's unsafe code stands here, each with its reason.

pub mod bridge;
pub mod calls;
pub mod capture;
pub mod inner;
pub mod link;
mod member;
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
