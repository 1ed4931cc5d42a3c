//! Which source positions the window reads along a row of the target map.

use crate::conv::Axis;

/// Consecutive taps of a row of the window, in the order in which weights are packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Taps {
    /// Which sequence of taps ([`Walk::sequences`]).
    pub sequence: usize,
    /// First tap of the run within it.
    pub first: usize,
    /// Taps.
    pub count: usize,
}

/// What the window reads at one column of the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Column {
    /// Which taps; index into [`Walk::taps`].
    pub taps: usize,
    /// The source column of the first.
    pub source: usize,
}

/// How the window goes along a row of the target map.
#[derive(Clone, Debug)]
pub(super) struct Walk {
    /// Kernel columns in order of rising source columns. One sequence forward; backward one for every remainder modulo
    /// the stride.
    pub sequences: Vec<Vec<usize>>,
    /// The different runs of taps.
    pub taps: Vec<Taps>,
    /// For each target column what it reads, if anything.
    pub columns: Vec<Option<Column>>,
}

impl Walk {
    /// From outputs to the inputs that they read.
    pub fn forward(axis: &Axis) -> Walk {
        let reads =
            (0..axis.output).map(|q| (0..axis.kernel).map(move |s| (0, s, axis.forward(q, s))).collect());
        Walk::new(vec![(0..axis.kernel).collect()], reads)
    }

    /// From inputs to the outputs that read them.
    pub fn backward(axis: &Axis) -> Walk {
        let sequence = |rest| (0..axis.kernel).filter(|s| s % axis.stride == rest).rev().collect::<Vec<_>>();
        let sequences: Vec<_> = (0..axis.stride).map(sequence).collect();
        let reads = (0..axis.input).map(|w| {
            let rest = (w + axis.pad) % axis.stride;
            let taps = sequences[rest].iter().enumerate();
            taps.map(|(i, &s)| (rest, i, axis.backward(w, s))).collect()
        });
        Walk::new(sequences.clone(), reads)
    }

    /// `reads`: for each target column the (sequence, place in it, source column) of every tap.
    fn new(
        sequences: Vec<Vec<usize>>,
        reads: impl Iterator<Item = Vec<(usize, usize, Option<usize>)>>,
    ) -> Walk {
        let mut all: Vec<Taps> = Vec::new();
        let columns = reads
            .map(|reads| {
                let mut inside =
                    reads.iter().filter_map(|&(sequence, i, source)| Some((sequence, i, source?)));
                let (sequence, first, source) = inside.next()?;
                let taps = Taps { sequence, first, count: 1 + inside.count() };
                let index = all.iter().position(|t| *t == taps).unwrap_or_else(|| {
                    all.push(taps);
                    all.len() - 1
                });
                Some(Column { taps: index, source })
            })
            .collect();
        Walk { sequences, taps: all, columns }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn axis(input: usize, output: usize, kernel: usize, stride: usize, pad: usize) -> Axis {
        Axis { input, output, kernel, stride, pad }
    }

    #[test]
    fn a_walk_visits_what_the_window_reads() {
        for a in [
            axis(27, 27, 5, 1, 2),
            axis(13, 13, 3, 1, 1),
            axis(55, 26, 5, 2, 0),
            axis(7, 3, 4, 3, 2),
            axis(2, 4, 5, 1, 3),
        ] {
            let (forward, backward) = (Walk::forward(&a), Walk::backward(&a));
            for (walk, targets, is_forward) in [(forward, a.output, true), (backward, a.input, false)] {
                for target in 0..targets {
                    let mut want: Vec<(usize, usize)> = (0..a.kernel)
                        .filter_map(|s| {
                            let source =
                                if is_forward { a.forward(target, s) } else { a.backward(target, s) };
                            Some((source?, s))
                        })
                        .collect();
                    want.sort_unstable();
                    let got: Vec<(usize, usize)> = walk.columns[target].map_or(vec![], |column| {
                        let taps = walk.taps[column.taps];
                        let run = taps.first..taps.first + taps.count;
                        run.enumerate()
                            .map(|(i, tap)| (column.source + i, walk.sequences[taps.sequence][tap]))
                            .collect()
                    });
                    assert_eq!(got, want, "{a:?} {target}");
                }
            }
        }
    }
}
