//! `config.json` as checked values.

pub mod resources;
