//! Units of the specification, which are those of cgroup v1, in those of cgroup v2.

use crate::error::{Error, Result};

/// `cpu.shares` (2 to 262144, default 1024) as `cpu.weight` (1 to 10000, default 100).
///
/// The quadratic fit of runc 1.5 and crun, `10^((l² + 125·l)/612 − 7/34)` with `l = log2(shares)`: it maps both ends and the default exactly,
/// which the older linear formula did not.
pub(super) fn cpu_weight(shares: u64) -> u64 {
    match shares {
        0..=2 => 1,
        262_144.. => 10_000,
        _ => {
            let l = (shares as f64).log2();
            10f64.powf((l * l + 125.0 * l) / 612.0 - 7.0 / 34.0).ceil() as u64
        }
    }
}

/// `blkio.weight` (10 to 1000) as `io.weight` (1 to 10000), linear as in runc.
pub(super) fn io_weight(weight: u16) -> Result<u64> {
    match weight {
        10..=1000 => Ok(1 + (u64::from(weight) - 10) * 9999 / 990),
        _ => Err(Error::invalid(format!("{weight} is not in the range 10-1000"))),
    }
}

/// The limit of swap alone, from that of memory and swap together.
pub(super) fn swap(memory_and_swap: i64, memory: i64) -> Result<i64> {
    if memory_and_swap < memory {
        return Err(Error::invalid(format!("the limit of memory and swap, {memory_and_swap}, is below memory.limit, {memory}")));
    }
    Ok(memory_and_swap - memory)
}

/// A page size as the kernel spells it in file names: digits, then KB, MB or GB.
pub(super) fn page_size(text: &str) -> Result<&str> {
    let digits = text.strip_suffix("KB").or_else(|| text.strip_suffix("MB")).or_else(|| text.strip_suffix("GB"));
    match digits {
        Some(digits) if !digits.is_empty() && digits.len() <= 10 && digits.bytes().all(|byte| byte.is_ascii_digit()) => Ok(text),
        _ => Err(Error::invalid(format!("pageSize {text:?} is not a page size like 2MB or 1GB"))),
    }
}

/// A device name that stays one word of the line it is written in.
pub(super) fn word(name: &str) -> Result<&str> {
    if name.is_empty() || name.chars().any(|c| c.is_whitespace() || c.is_control() || c == '/') {
        return Err(Error::invalid(format!("{name:?} is not a device name")));
    }
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn shares_map_to_weights_as_in_runc() {
        for (shares, weight) in
            [(2, 1), (3, 2), (4, 2), (100, 17), (512, 59), (1024, 100), (2048, 174), (10_240, 639), (262_144, 10_000), (1 << 40, 10_000)]
        {
            assert_eq!(cpu_weight(shares), weight, "{shares}");
        }
    }

    #[test]
    fn io_weight_maps_both_ends() {
        assert_eq!((io_weight(10).unwrap(), io_weight(500).unwrap(), io_weight(1000).unwrap()), (1, 4950, 10_000));
        assert!(io_weight(9).is_err() && io_weight(1001).is_err());
    }

    #[test]
    fn only_a_page_size_names_a_file() {
        assert_eq!(page_size("2MB").unwrap(), "2MB");
        for text in ["", "MB", "2", "../../x", "2MB/../x", "2mb", "0x2MB", "99999999999KB"] {
            assert!(page_size(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn weights_are_in_range_and_grow_with_shares(a in 2u64..=262_144, b in 2u64..=262_144) {
            let (low, high) = (a.min(b), a.max(b));
            prop_assert!(cpu_weight(low) <= cpu_weight(high));
            prop_assert!((1..=10_000).contains(&cpu_weight(a)));
        }
    }
}
