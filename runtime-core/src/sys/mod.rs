//! Raw system calls, each with a safe face. The only place of the workspace that may say `unsafe`.
#![allow(unsafe_code)]

pub mod bpf;
