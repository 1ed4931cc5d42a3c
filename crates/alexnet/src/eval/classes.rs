//! Which output of a network stands for which class of some pictures, whatever the order of either: ILSVRC's own numbers
//! (the development kit, Caffe's early lists) and the order of the synsets (every published network) differ, and names
//! are written in several ways.

use crate::error::{Error, Result};
use crate::interchange::import::imagenet_classes;
use crate::zoo::IMAGENET_CLASSES;
use std::collections::{BTreeMap, HashMap};

/// Names that a message lists.
const NAMED: usize = 5;

/// The outputs for the classes of some data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Matching {
    /// For each class of the data, the output that stands for it.
    pub outputs: Vec<u32>,
    /// How they were matched, where the two lists are not the same.
    pub note: Option<String>,
    /// What was assumed, where names do not say it.
    pub warning: Option<String>,
}

/// How two names can mean the same class, the surest first.
const RULES: [(&str, Key); 4] = [
    ("name", |name| Some(name.into())),
    ("synset", |name| synset(name).map(String::from)),
    ("words", |name| words(name)),
    ("first word", |name| words(name).map(|words| first(&words).into())),
];

type Key = fn(&str) -> Option<String>;

/// Finds the output for each class of the data: by the whole name, by the WordNet id that it begins with, by its words, or
/// by the first of them; a word that stands for several classes decides nothing. Outputs may be left over: answers are
/// then among more classes than the data have. Where one side has no names, its numbers stand for the others' order.
///
/// # Errors
/// [`Error::Data`] naming the first classes that are not found.
pub fn matching(model: &[String], data: &[String]) -> Result<Matching> {
    if model == data {
        return Ok(Matching { outputs: (0..data.len() as u32).collect(), note: None, warning: None });
    }
    if let Some(found) = by_number(model, data)? {
        return Ok(found);
    }
    let mut outputs: Vec<Option<u32>> = vec![None; data.len()];
    let mut taken = vec![false; model.len()];
    let mut counts: Vec<(&str, usize)> = vec![];
    for (what, key) in RULES {
        let (ours, theirs) = (index(model, key), index(data, key));
        let mut found = 0;
        for (name, class) in theirs {
            let (Some(class), Some(&Some(output))) = (class, ours.get(&name)) else { continue };
            let (class, output) = (class as usize, output as usize);
            // Two ids are two classes, whatever their words.
            let differ = matches!(
                (synset(&data[class]), synset(&model[output])), (Some(a), Some(b)) if a != b
            );
            if outputs[class].is_none() && !taken[output] && !differ {
                outputs[class] = Some(output as u32);
                taken[output] = true;
                found += 1;
            }
        }
        if found > 0 {
            counts.push((what, found));
        }
    }
    let missing: Vec<&String> =
        data.iter().zip(&outputs).filter(|(_, o)| o.is_none()).map(|(n, _)| n).collect();
    let left: Vec<&String> = model.iter().zip(&taken).filter(|(_, taken)| !**taken).map(|(n, _)| n).collect();
    let matched: Vec<u32> = outputs.iter().flatten().copied().collect();
    if !missing.is_empty() {
        return Err(Error::Data(format!(
            "the classes of the data ({}) are not those of the model ({}); only the data has {}{}",
            data.len(),
            model.len(),
            listed(&missing),
            if left.is_empty() { String::new() } else { format!("; only the model has {}", listed(&left)) }
        )));
    }
    let how: Vec<String> = counts.iter().map(|(what, n)| format!("{n} by {what}")).collect();
    let mut note =
        format!("the {} of the data matched to outputs of the model: {}", data.len(), how.join(", "));
    if let Some((class, output)) =
        matched.iter().enumerate().find(|(class, output)| *class as u32 != **output)
    {
        note += &format!(
            "; the order differs: {} is {} in the data, {} in the model",
            data[class],
            class + 1,
            output + 1
        );
    }
    if !left.is_empty() {
        note += &format!(
            "; answers are among all {} of the model, of which the data lacks {}",
            model.len(),
            left.len()
        );
    }
    Ok(Matching { outputs: matched, note: Some(note), warning: None })
}

/// The first few names.
fn listed(names: &[&String]) -> String {
    let mut text = names.iter().take(NAMED).map(|name| name.as_str()).collect::<Vec<_>>().join(", ");
    if names.len() > NAMED {
        text += &format!(" and {} more", names.len() - NAMED);
    }
    text
}

/// Where one of the two lists has numbers in place of names: which class each stands for.
fn by_number(model: &[String], data: &[String]) -> Result<Option<Matching>> {
    let numbers =
        |names: &[String]| -> Option<Vec<usize>> { names.iter().map(|name| number(name)).collect() };
    let (ours, theirs) = (numbers(model), numbers(data));
    let counted = |found: &[usize]| {
        let mut sorted = found.to_vec();
        sorted.sort_unstable();
        sorted.iter().copied().eq(0..found.len())
    };
    let same = model.len() == data.len();
    match (ours, theirs) {
        // Folders called 0, 1, 10, 2 and so on: the number is the output.
        (ours, Some(theirs)) if same && counted(&theirs) && ours.as_ref().is_none_or(|o| o.iter().copied().eq(0..o.len())) => {
            Ok(Some(Matching {
                outputs: theirs.iter().map(|&n| n as u32).collect(),
                note: None,
                warning: Some(
                    "warning: the classes of the data have no names; their numbers are taken for the model's outputs, \
                     counted from 0"
                        .into(),
                ),
            }))
        }
        (Some(_), None) if model.len() == IMAGENET_CLASSES && data.iter().all(|name| synset(name).is_some()) => {
            let mut found = matching(&imagenet_classes(), data)?;
            found.warning = Some(
                "warning: the model's 1000 outputs have no names; they are taken for ILSVRC-2012's in the order of their \
                 synsets, as every published network has them"
                    .into(),
            );
            Ok(Some(found))
        }
        (Some(_), None) if same => {
            let mut order: Vec<u32> = (0..data.len() as u32).collect();
            let ids = data.iter().all(|name| synset(name).is_some());
            if ids {
                order.sort_by_key(|&class| synset(&data[class as usize]));
            }
            let mut outputs = vec![0; data.len()];
            order.iter().enumerate().for_each(|(output, &class)| outputs[class as usize] = output as u32);
            let by = if ids { "of their synsets" } else { "that they have in the data" };
            Ok(Some(Matching {
                outputs,
                note: None,
                warning: Some(format!(
                    "warning: the model's outputs have no names; they are taken for the classes of the data in the order \
                     {by} (the first: {}). `alexnet weights import --classes FILE` names them",
                    order.first().map_or("none", |&class| data[class as usize].as_str())
                )),
            }))
        }
        (Some(_), None) => Err(Error::Data(format!(
            "the model has {} outputs without names, and the data {} classes, the first {}; name the outputs with \
             `alexnet weights import --classes FILE`",
            model.len(),
            data.len(),
            listed(&data.iter().collect::<Vec<_>>())
        ))),
        _ => Ok(None),
    }
}

/// The number of a class without a name: `7`, `class 7`.
fn number(name: &str) -> Option<usize> {
    let digits = name.strip_prefix("class").map_or(name, |rest| rest.trim_start_matches([' ', '_', '-']));
    let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    plain.then(|| digits.parse().ok()).flatten()
}

/// The WordNet id that a name begins with: `n` and eight digits.
fn synset(name: &str) -> Option<&str> {
    let id = name.get(..9)?;
    let ends = name[9..].chars().next().is_none_or(|c| !c.is_alphanumeric());
    (ends && id.starts_with('n') && id.bytes().skip(1).all(|b| b.is_ascii_digit())).then_some(id)
}

/// A name without its id, in lower case, with single spaces.
fn words(name: &str) -> Option<String> {
    let rest = synset(name).map_or(name, |id| &name[id.len()..]);
    let parts: Vec<String> = rest
        .split(|c: char| c.is_whitespace() || c == '_' || c == '-')
        .filter(|w| !w.is_empty())
        .map(str::to_lowercase)
        .collect();
    let text = parts.join(" ");
    let text = text.trim_start_matches([':', ',', ' ']);
    (!text.is_empty()).then(|| text.to_string())
}

/// The first of several names with commas between.
fn first(words: &str) -> &str {
    words.split(',').next().unwrap_or(words).trim()
}

/// Where each key is; `None` if it is there twice. Sorted, so that nothing hangs on an order of hashes.
fn index(names: &[String], key: Key) -> BTreeMap<String, Option<u32>> {
    let mut seen: HashMap<String, usize> = HashMap::new();
    let mut found = BTreeMap::new();
    for (i, name) in names.iter().enumerate() {
        if let Some(key) = key(name) {
            let times = seen.entry(key.clone()).or_default();
            *times += 1;
            found.insert(key, (*times == 1).then_some(i as u32));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(|name| name.to_string()).collect()
    }

    #[test]
    fn ids_words_and_names_are_matched_in_any_order() {
        let model = imagenet_classes();
        // The kit's order, folders of ids, published words, a few of the thousand.
        let data = names(&[
            "n02119789 kit fox, Vulpes macrotis",
            "n01440764",
            "Great_White-Shark",
            "toucan",
            "goldfish, Carassius auratus",
        ]);
        let found = matching(&model, &data).unwrap();
        for (class, output) in data.iter().zip(&found.outputs) {
            let own = &model[*output as usize];
            let expected = ["n02119789", "n01440764", "n01484850", "n01843383", "n01443537"];
            assert!(expected.iter().any(|id| own.starts_with(id)), "{class}: {own}");
        }
        assert_eq!(found.outputs[1], 0);
        let note = found.note.unwrap();
        assert!(
            note.contains("1 by name, 1 by synset, 2 by words, 1 by first word") && note.contains("all 1000"),
            "{note}"
        );
        assert!(note.contains("kit fox, Vulpes macrotis is 1 in the data, 279 in the model"), "{note}");
        let mut turned = model.clone();
        turned.reverse();
        let found = matching(&model, &turned).unwrap();
        assert!(found.outputs.iter().copied().eq((0..1000).rev()));
        assert_eq!(matching(&model, &model).unwrap().note, None);
    }

    #[test]
    fn what_is_not_found_or_not_told_apart_is_refused_by_name() {
        let model = imagenet_classes();
        let error = matching(&model, &names(&["n01440764", "n99999999", "unicorn"])).unwrap_err();
        assert_eq!(error.exit_code(), 3);
        assert!(error.to_string().contains("only the data has n99999999, unicorn"), "{error}");
        // The bird and the machine.
        let error = matching(&model, &names(&["crane"])).unwrap_err().to_string();
        assert!(error.contains("only the data has crane"), "{error}");
        // The same word under another id is another class.
        let error =
            matching(&names(&["n00000001 thing"]), &names(&["n00000002 thing"])).unwrap_err().to_string();
        assert!(
            error.contains("only the data has n00000002 thing; only the model has n00000001 thing"),
            "{error}"
        );
        // Two classes of the data cannot be one output.
        assert!(matching(&names(&["n00000001 a, b", "x"]), &names(&["n00000001", "a"])).is_err());
    }

    #[test]
    fn outputs_without_names_follow_the_synsets_or_the_data() {
        let numbered = |n: usize| (0..n).map(|i| format!("class {i}")).collect::<Vec<_>>();
        let data = names(&["n00000030 blue", "n00000010 green", "n00000020 red"]);
        let found = matching(&numbered(3), &data).unwrap();
        assert_eq!(found.outputs, [2, 0, 1]);
        assert!(found.warning.unwrap().contains("order of their synsets (the first: n00000010 green)"));
        let found = matching(&numbered(2), &names(&["dog", "cat"])).unwrap();
        assert_eq!(found.outputs, [0, 1]);
        assert!(found.warning.unwrap().contains("that they have in the data"));
        let error = matching(&numbered(4), &data).unwrap_err().to_string();
        assert!(error.contains("4 outputs without names") && error.contains("--classes"), "{error}");
        let found = matching(&numbered(1000), &names(&["n01443537", "n01440764"])).unwrap();
        assert_eq!((found.outputs, found.warning.is_some()), (vec![1, 0], true));
    }

    #[test]
    fn numbered_folders_are_outputs() {
        let data: Vec<String> = {
            let mut sorted: Vec<String> = (0..12).map(|i| i.to_string()).collect();
            sorted.sort();
            sorted
        };
        let model: Vec<String> = (0..12).map(|i| format!("thing {i}")).collect();
        let found = matching(&model, &data).unwrap();
        assert_eq!(found.outputs[..4], [0, 1, 10, 11]);
        assert!(found.warning.unwrap().contains("no names"));
        // From 1: nobody says which.
        let from_one: Vec<String> = (1..=12).map(|i| i.to_string()).collect();
        assert!(matching(&model, &from_one).is_err());
    }
}
