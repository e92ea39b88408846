//! The Task service.
