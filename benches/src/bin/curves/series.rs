//! Turns runs into the points of a line.

use crate::plan::{Curve, Tool};
use crate::run::Run;

/// Least, median and greatest figure of the rounds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// Position on the curve.
    pub x: f64,
    pub least: f64,
    pub median: f64,
    pub most: f64,
}

/// A line of a chart.
#[derive(Clone, Debug)]
pub struct Series {
    pub name: &'static str,
    pub points: Vec<Spread>,
}

impl Series {
    /// Makes a line from a figure of each run of a curve with a tool.
    pub fn of(
        runs: &[Run],
        name: &'static str,
        curve: Curve,
        tool: Tool,
        figure: impl Fn(&Run) -> Option<f64>,
    ) -> Series {
        Series::over(runs, name, curve, |_, run| if run.tool == tool { figure(run) } else { None })
    }

    /// Makes a line from the difference of a figure with a tool and alone, in the same round.
    pub fn added(
        runs: &[Run],
        name: &'static str,
        curve: Curve,
        tool: Tool,
        figure: impl Fn(&Run) -> Option<f64>,
    ) -> Series {
        Series::over(
            runs,
            name,
            curve,
            |base, run| {
                if run.tool == tool { Some(figure(run)? - figure(base)?) } else { None }
            },
        )
    }

    fn over(runs: &[Run], name: &'static str, curve: Curve, figure: impl Fn(&Run, &Run) -> Option<f64>) -> Series {
        let of_curve = || runs.iter().filter(|run| run.curve == curve && run.is_exact());
        let mut places: Vec<u64> = of_curve().map(|run| run.x).collect();
        places.sort_unstable();
        places.dedup();
        let base_of =
            |run: &Run| of_curve().find(|base| base.tool == Tool::Base && (base.x, base.round) == (run.x, run.round));
        let at = |x: u64| {
            let here = of_curve().filter(|run| run.x == x);
            spread(x, here.filter_map(|run| figure(base_of(run)?, run)).collect())
        };
        Series { name, points: places.into_iter().filter_map(at).collect() }
    }
}

fn spread(x: u64, mut figures: Vec<f64>) -> Option<Spread> {
    figures.sort_by(f64::total_cmp);
    let (&least, &most) = (figures.first()?, figures.last()?);
    let half = figures.len() / 2;
    let median = if figures.len() % 2 == 1 { figures[half] } else { f64::midpoint(figures[half - 1], figures[half]) };
    Some(Spread { x: x as f64, least, median, most })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_lies_between_the_middle_two() {
        let odd = spread(7, vec![3.0, 1.0, 2.0]);
        assert_eq!(odd, Some(Spread { x: 7.0, least: 1.0, median: 2.0, most: 3.0 }));
        let even = spread(1, vec![4.0, 1.0, 2.0, 3.0]);
        assert_eq!(even, Some(Spread { x: 1.0, least: 1.0, median: 2.5, most: 4.0 }));
        assert_eq!(spread(1, Vec::new()), None);
    }
}
