//! From the labels that a source writes (numbers or names) to classes.

use std::collections::HashMap;

/// Numbers above this are not class indices.
pub const MAX_CLASSES: usize = 100_000;

/// Collects labels as they come, in little memory: each distinct one gets a provisional number.
#[derive(Debug, Default)]
pub struct Labels {
    ids: HashMap<String, u32>,
    texts: Vec<String>,
}

impl Labels {
    /// The provisional number of a label.
    pub fn id(&mut self, label: &str) -> u32 {
        if let Some(&id) = self.ids.get(label) {
            return id;
        }
        let id = self.texts.len() as u32;
        self.ids.insert(label.into(), id);
        self.texts.push(label.into());
        id
    }

    /// The classes, and for each provisional number its class. Labels that are all whole numbers are class indices
    /// counted from 0, into `known` where the source names its classes, else into classes named by their numbers;
    /// other labels are names, sorted by their bytes.
    ///
    /// # Errors
    /// Which label is wrong and why.
    pub fn classes(self, known: Option<Vec<String>>) -> Result<(Vec<String>, Vec<u32>), String> {
        let indices: Option<Vec<u64>> =
            self.texts.iter().map(|t| t.parse().ok().filter(|_| !t.starts_with('+'))).collect();
        match (indices, known) {
            (Some(indices), Some(known)) => {
                if let Some(bad) = indices.iter().find(|&&i| i >= known.len() as u64) {
                    return Err(format!(
                        "label {bad} among {} classes, which are counted from 0",
                        known.len()
                    ));
                }
                Ok((known, indices.into_iter().map(|i| i as u32).collect()))
            }
            (Some(indices), None) => {
                let largest = indices.iter().copied().max().unwrap_or(0);
                if largest >= MAX_CLASSES as u64 {
                    return Err(format!(
                        "label {largest}: numbers are class indices counted from 0, at most {}; write names \
                         instead",
                        MAX_CLASSES - 1
                    ));
                }
                let classes = (0..=largest).map(|i| i.to_string()).collect();
                Ok((classes, indices.into_iter().map(|i| i as u32).collect()))
            }
            (None, Some(known)) => {
                let by_name: HashMap<&str, u32> =
                    known.iter().enumerate().map(|(i, n)| (n.as_str(), i as u32)).collect();
                let ids = self.texts.iter().map(|text| {
                    by_name.get(text.as_str()).copied().ok_or_else(|| {
                        format!("label {text:?} is not among the {} classes that are named", known.len())
                    })
                });
                let ids = ids.collect::<Result<_, _>>()?;
                Ok((known, ids))
            }
            (None, None) => {
                let mut classes = self.texts.clone();
                classes.sort_unstable();
                let by_name: HashMap<&str, u32> =
                    classes.iter().enumerate().map(|(i, n)| (n.as_str(), i as u32)).collect();
                let ids = self.texts.iter().map(|text| by_name[text.as_str()]).collect();
                Ok((classes, ids))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn classes(labels: &[&str], known: Option<&[&str]>) -> Result<(Vec<String>, Vec<u32>), String> {
        let mut all = Labels::default();
        labels.iter().for_each(|l| drop(all.id(l)));
        all.classes(known.map(|k| k.iter().map(|n| n.to_string()).collect()))
    }

    #[test]
    fn numbers_are_indices_and_names_are_sorted() {
        assert_eq!(
            classes(&["2", "0", "2"], None).unwrap(),
            (["0", "1", "2"].map(String::from).into(), vec![2, 0])
        );
        assert_eq!(
            classes(&["dog", "cat"], None).unwrap(),
            (["cat", "dog"].map(String::from).into(), vec![1, 0])
        );
        assert_eq!(classes(&["1", "x"], None).unwrap().0, ["1", "x"]);
        assert_eq!(
            classes(&["1"], Some(&["a", "b"])).unwrap(),
            (["a", "b"].map(String::from).into(), vec![1])
        );
        assert_eq!(classes(&["b"], Some(&["a", "b"])).unwrap().1, [1]);
    }

    #[test]
    fn labels_out_of_range_are_refused() {
        assert!(classes(&["2"], Some(&["a", "b"])).unwrap_err().contains("label 2 among 2 classes"));
        assert!(classes(&["c"], Some(&["a", "b"])).unwrap_err().contains("\"c\""));
        assert!(classes(&["100000"], None).unwrap_err().contains("write names"));
        assert_eq!(classes(&["-1", "0"], None).unwrap().0, ["-1", "0"]);
    }
}
