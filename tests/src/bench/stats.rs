//! Medians, and how sure a median of ratios is.

/// The quantile `q` (0 to 1) of `values`, between neighbours where it falls between; NaN of nothing.
pub fn quantile(values: &[f64], q: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    let at = q * last as f64;
    let below = sorted[at.floor() as usize];
    below + (sorted[at.ceil() as usize] - below) * at.fract()
}

/// The middle.
pub fn median(values: &[f64]) -> f64 {
    quantile(values, 0.5)
}

/// The median of ratios with the interval that holds it in 95 of 100 resamplings.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ratio {
    /// The median.
    pub median: f64,
    /// The interval's lower end.
    pub low: f64,
    /// Its upper end.
    pub high: f64,
}

/// How often the bootstrap draws.
const DRAWS: usize = 2000;

/// Ours to theirs, pair by pair (Efron's percentile bootstrap, with a fixed seed so that a result can be had again).
pub fn ratio(ours: &[f64], theirs: &[f64]) -> Option<Ratio> {
    let pairs: Vec<f64> = ours.iter().zip(theirs).map(|(a, b)| a / b).filter(|r| r.is_finite()).collect();
    if pairs.is_empty() {
        return None;
    }
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let draw = |random: &mut Random| pairs.iter().map(|_| pairs[random.below(pairs.len())]).collect::<Vec<f64>>();
    let medians: Vec<f64> = (0..DRAWS).map(|_| median(&draw(&mut random))).collect();
    Some(Ratio { median: median(&pairs), low: quantile(&medians, 0.025), high: quantile(&medians, 0.975) })
}

/// Vigna's splitmix64.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % bound as u64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_lie_between_neighbours() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(quantile(&[0.0, 10.0], 0.9), 9.0);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn a_ratio_is_of_pairs_and_its_interval_holds_it() {
        // The machine was slow in the second half, for both alike.
        let theirs: Vec<f64> = (0..40).map(|i| if i < 20 { 100.0 } else { 1000.0 } + f64::from(i % 5)).collect();
        let ours: Vec<f64> = theirs.iter().enumerate().map(|(i, t)| t * (0.5 + (i % 3) as f64 / 100.0)).collect();
        let found = ratio(&ours, &theirs).unwrap();
        assert!((found.median - 0.51).abs() < 1e-9, "{found:?}");
        assert!(found.low <= found.median && found.median <= found.high && found.high - found.low < 0.03, "{found:?}");
        assert_eq!(ratio(&ours, &theirs), Some(found));
        assert_eq!(ratio(&[], &[]), None);
    }
}
