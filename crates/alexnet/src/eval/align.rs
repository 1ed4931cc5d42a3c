//! The pictures that several members of an ensemble have in common.

use crate::error::{Error, Result};
use std::collections::HashMap;

/// The pictures that one member can answer for.
#[derive(Clone, Debug, Default)]
pub struct Catalogue<'a> {
    /// What the member is called in messages.
    pub name: String,
    /// (path relative to the data folder, class, the member's own number for it).
    pub pictures: Vec<(&'a str, u32, u32)>,
}

/// Pictures that every member can answer for, in the order of the first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Common {
    /// One class a picture.
    pub labels: Vec<u32>,
    /// For each member, its own number of each picture.
    pub rows: Vec<Vec<u32>>,
}

/// Finds them, by path.
///
/// # Errors
/// [`Error::Data`] if there is none, or if members disagree about a picture's class.
pub fn common(catalogues: &[Catalogue]) -> Result<Common> {
    let Some((first, others)) = catalogues.split_first() else {
        return Err(Error::Data("no predictions to compare".into()));
    };
    let found: Vec<HashMap<&str, (u32, u32)>> = others
        .iter()
        .map(|other| other.pictures.iter().map(|&(path, label, row)| (path, (label, row))).collect())
        .collect();
    let mut common = Common { labels: vec![], rows: vec![vec![]; catalogues.len()] };
    let mut rows = vec![0; others.len()];
    'pictures: for &(path, label, own) in &first.pictures {
        for ((other, index), row) in others.iter().zip(&found).zip(&mut rows) {
            let Some(&(other_label, other_row)) = index.get(path) else { continue 'pictures };
            if other_label != label {
                return Err(Error::Data(format!(
                    "{path} is of class {} in {} and of class {} in {}: they were made from different data",
                    label + 1,
                    first.name,
                    other_label + 1,
                    other.name
                )));
            }
            *row = other_row;
        }
        common.labels.push(label);
        common.rows[0].push(own);
        common.rows[1..].iter_mut().zip(&rows).for_each(|(list, &row)| list.push(row));
    }
    if common.labels.is_empty() {
        let example = |c: &Catalogue| c.pictures.first().map_or("none".into(), |p| p.0.to_string());
        let of: Vec<String> = catalogues
            .iter()
            .map(|c| format!("{} has {}, the first {}", c.name, c.pictures.len(), example(c)))
            .collect();
        return Err(Error::Data(format!(
            "there is no picture that every network can be measured with: {}",
            of.join("; ")
        )));
    }
    Ok(common)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn catalogue<'a>(name: &str, pictures: &[(&'a str, u32, u32)]) -> Catalogue<'a> {
        Catalogue { name: name.into(), pictures: pictures.to_vec() }
    }

    #[test]
    fn common_pictures_in_the_first_one_s_order() {
        let a = catalogue("a", &[("z", 1, 10), ("y", 0, 11), ("x", 2, 12)]);
        let b = catalogue("b", &[("x", 2, 0), ("w", 0, 1), ("z", 1, 2)]);
        let both = common(&[a.clone(), b.clone()]).unwrap();
        assert_eq!(both, Common { labels: vec![1, 2], rows: vec![vec![10, 12], vec![2, 0]] });
        assert_eq!(common(std::slice::from_ref(&a)).unwrap().rows, [[10, 11, 12]]);
        let other = catalogue("c", &[("z", 2, 0)]);
        let error = common(&[a.clone(), other]).unwrap_err().to_string();
        assert!(error.contains("z is of class 2 in a and of class 3 in c"), "{error}");
        let none = common(&[a, catalogue("d", &[("q", 0, 0)])]).unwrap_err().to_string();
        assert!(none.contains("no picture") && none.contains("the first q"), "{none}");
    }
}
