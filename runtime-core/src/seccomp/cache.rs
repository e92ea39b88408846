//! Compiled filters, kept by profile: a pod's containers, and whatever is executed in them later, share one.

use std::collections::VecDeque;
use std::sync::Arc;

use oci_spec::runtime::LinuxSeccomp;

use super::{Filter, compile};
use crate::error::Result;

/// How many profiles are kept. A pod has one or two.
const CAPACITY: usize = 8;

/// The filters that were asked for last.
#[derive(Debug, Default)]
pub struct Cache {
    /// The latest one first.
    entries: VecDeque<(LinuxSeccomp, Arc<Filter>)>,
}

impl Cache {
    /// The filter of `profile`, compiled unless an equal one was.
    ///
    /// # Errors
    /// Those of [`compile`]; nothing is kept then.
    pub fn get(&mut self, profile: &LinuxSeccomp) -> Result<Arc<Filter>> {
        let entry = match self.entries.iter().position(|(known, _)| known == profile).and_then(|at| self.entries.remove(at)) {
            Some(entry) => entry,
            None => (profile.clone(), Arc::new(compile(profile)?)),
        };
        let filter = Arc::clone(&entry.1);
        self.entries.truncate(CAPACITY - 1);
        self.entries.push_front(entry);
        Ok(filter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn profile(errno: u32) -> LinuxSeccomp {
        let mut profile = LinuxSeccomp::default();
        profile.set_default_errno_ret(Some(errno));
        profile
    }

    #[test]
    fn an_equal_profile_is_compiled_once_and_the_least_used_one_goes() {
        let mut cache = Cache::default();
        let first = cache.get(&profile(0)).unwrap();
        for errno in 1..CAPACITY as u32 {
            cache.get(&profile(errno)).unwrap();
        }
        assert!(Arc::ptr_eq(&first, &cache.get(&profile(0)).unwrap()));
        let second = cache.get(&profile(1)).unwrap();
        for errno in 100..99 + CAPACITY as u32 {
            cache.get(&profile(errno)).unwrap();
        }
        assert!(Arc::ptr_eq(&second, &cache.get(&profile(1)).unwrap()));
        assert!(!Arc::ptr_eq(&first, &cache.get(&profile(0)).unwrap()));
    }
}
