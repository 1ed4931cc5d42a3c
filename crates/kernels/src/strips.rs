//! A matrix that lies as strips of a few columns, one after the other, each row by row. Whatever part of it a kernel reads is
//! then a few long streams, which a processor foresees; parts of long rows are not, and rows a power of two apart would
//! share a few sets of a cache.

/// How a matrix lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Strips {
    /// Rows.
    pub rows: usize,
    /// Columns that exist.
    pub columns: usize,
    /// Columns of every strip. What the last one has beyond the matrix means nothing.
    pub width: usize,
}

impl Strips {
    /// One strip: the rows as they are.
    pub fn whole(rows: usize, columns: usize) -> Strips {
        Strips { rows, columns, width: columns }
    }

    /// Elements that it takes.
    pub fn len(&self) -> usize {
        self.columns.div_ceil(self.width) * self.rows * self.width
    }

    /// True if there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where an element lies.
    #[inline(always)]
    pub fn at(&self, row: usize, column: usize) -> usize {
        (column / self.width * self.rows + row) * self.width + column % self.width
    }

    /// From rows one after the other.
    ///
    /// # Panics
    /// If a length is another matrix's.
    pub fn place(&self, from: &[f32], to: &mut [f32]) {
        assert_eq!((from.len(), to.len()), (self.rows * self.columns, self.len()), "matrix");
        for (row, from) in from.chunks_exact(self.columns.max(1)).enumerate() {
            for (strip, part) in from.chunks(self.width).enumerate() {
                to[self.at(row, strip * self.width)..][..part.len()].copy_from_slice(part);
            }
        }
    }

    /// To rows one after the other.
    ///
    /// # Panics
    /// If the length is another matrix's.
    pub fn collect(&self, from: &[f32]) -> Vec<f32> {
        assert_eq!(from.len(), self.len(), "matrix");
        let mut rows = Vec::with_capacity(self.rows * self.columns);
        for row in 0..self.rows {
            for first in (0..self.columns).step_by(self.width) {
                let part = self.width.min(self.columns - first);
                rows.extend_from_slice(&from[self.at(row, first)..][..part]);
            }
        }
        rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_element_has_its_own_place() {
        for strips in [
            Strips { rows: 3, columns: 70, width: 32 },
            Strips { rows: 5, columns: 64, width: 32 },
            Strips::whole(4, 7),
        ] {
            let matrix: Vec<f32> = (0..strips.rows * strips.columns).map(|i| i as f32).collect();
            let mut placed = vec![-1.0; strips.len()];
            strips.place(&matrix, &mut placed);
            assert_eq!(strips.collect(&placed), matrix);
            assert_eq!(placed[strips.at(2, 6)], matrix[2 * strips.columns + 6]);
            let gaps = placed.iter().filter(|v| **v < 0.0).count();
            assert_eq!(gaps, strips.len() - matrix.len());
        }
        assert_eq!(Strips::whole(4, 7).len(), 28);
    }
}
