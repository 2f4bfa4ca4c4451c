//! Interleaved rounds: A B C A B C …, so that whatever else the machine does hits all of them alike, and a ratio
//! is one between neighbours in time. The first round warms up and is thrown away.

use serde::Serialize;

/// One of those that are compared: runs once and says what was measured.
pub type Contender<'a, S> = Box<dyn FnMut() -> anyhow::Result<S> + 'a>;

/// Median and extremes of the rounds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Stats {
    pub median: f64,
    pub min: f64,
    pub max: f64,
}

/// Runs every contender once a round; the samples of each, in the order of the rounds.
pub fn interleave<S>(rounds: usize, contenders: &mut [Contender<'_, S>]) -> anyhow::Result<Vec<Vec<S>>> {
    let mut samples: Vec<Vec<S>> = contenders.iter().map(|_| Vec::with_capacity(rounds)).collect();
    for round in 0..=rounds {
        for (contender, samples) in contenders.iter_mut().zip(&mut samples) {
            let sample = contender()?;
            if round > 0 {
                samples.push(sample);
            }
        }
    }
    Ok(samples)
}

impl Stats {
    /// Of at least one value; all zero of none.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Stats {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (Some(&min), Some(&max)) = (values.first(), values.last()) else {
            return Stats { median: 0.0, min: 0.0, max: 0.0 };
        };
        let middle = values.len() / 2;
        let median =
            if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 };
        Stats { median, min, max }
    }

    /// Of the ratios of the rounds, each between two that ran one after the other.
    pub fn of_ratios(ours: &[f64], theirs: &[f64]) -> Stats {
        Stats::of(ours.iter().zip(theirs).map(|(ours, theirs)| ours / theirs))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(Stats::of([3.0, 1.0, 2.0]), Stats { median: 2.0, min: 1.0, max: 3.0 });
        assert_eq!(Stats::of([4.0, 1.0, 2.0, 3.0]).median, 2.5);
        assert_eq!(Stats::of([]).median, 0.0);
    }

    #[test]
    fn ratios_are_those_of_the_rounds() {
        let stats = Stats::of_ratios(&[2.0, 4.0, 9.0], &[1.0, 4.0, 3.0]);
        assert_eq!(stats, Stats { median: 2.0, min: 1.0, max: 3.0 });
    }

    #[test]
    fn the_first_round_is_thrown_away() {
        let (mut a, mut b) = (0, 10);
        let mut contenders: Vec<Contender<'_, i32>> = vec![
            Box::new(|| {
                a += 1;
                Ok(a)
            }),
            Box::new(|| {
                b += 1;
                Ok(b)
            }),
        ];
        let samples = interleave(2, &mut contenders).expect("they do not fail");
        assert_eq!(samples, [[2, 3], [12, 13]]);
    }
}
