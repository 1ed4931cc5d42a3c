//! What the development kits of ILSVRC say: the classes in their order, and the classes of the validation pictures.

use super::matlab::{Value, read_structs};
use super::tar_index::{self, Found};
use flate2::read::GzDecoder;
use std::io::Read;

/// Most bytes that a development kit may unpack to: the real ones take 3-5 MiB.
const MAX_KIT_BYTES: u64 = 32 << 20;
/// Where the classes are.
const META: &str = "data/meta.mat";

/// What a development kit says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Devkit {
    /// WordNet ids of the classes; class i has ILSVRC's id i + 1.
    pub wnids: Vec<String>,
    /// The words for each class.
    pub words: Vec<String>,
    /// The class of each validation picture, in the order of their numbers.
    pub val_truth: Vec<u32>,
}

impl Devkit {
    /// Names of the classes: WordNet id and words.
    pub fn class_names(&self) -> Vec<String> {
        let name = |(wnid, words): (&String, &String)| format!("{wnid} {words}").trim_end().to_owned();
        self.wnids.iter().zip(&self.words).map(name).collect()
    }
}

/// Reads a development kit (.tar.gz). `id_field` is the field with ILSVRC's own ids, `truth` the file of validation
/// classes within the kit.
///
/// # Errors
/// What is wrong with it, naming the file within.
pub fn read(bytes: &[u8], id_field: &str, truth: &str) -> Result<Devkit, String> {
    let mut tar = Vec::new();
    GzDecoder::new(bytes)
        .take(MAX_KIT_BYTES + 1)
        .read_to_end(&mut tar)
        .map_err(|e| format!("not a complete gzip file ({e})"))?;
    if tar.len() as u64 > MAX_KIT_BYTES {
        return Err(format!("it unpacks to more than {MAX_KIT_BYTES} bytes"));
    }
    let (mut meta, mut lines) = (None, None);
    tar_index::walk(&tar, 0, tar.len() as u64, &mut |found| {
        if let Found::Member(member) = found {
            let body = &tar[member.offset as usize..(member.offset + member.bytes) as usize];
            if member.path.ends_with(META) {
                meta = Some(body);
            } else if member.path.ends_with(truth) {
                lines = Some(body);
            }
        }
        Ok(())
    })?;
    let meta = meta.ok_or_else(|| format!("no {META} in it"))?;
    let (wnids, words) = classes(meta, id_field).map_err(|why| format!("{META}: {why}"))?;
    let lines = lines.ok_or_else(|| format!("no {truth} in it"))?;
    let val_truth = ground_truth(lines, wnids.len()).map_err(|why| format!("{truth}: {why}"))?;
    Ok(Devkit { wnids, words, val_truth })
}

/// WordNet ids and words of the classes in the order of ILSVRC's ids: of the synsets in meta.mat those without
/// children, whose ids are 1 to their number.
///
/// # Errors
/// What is wrong with the file.
pub fn classes(meta: &[u8], id_field: &str) -> Result<(Vec<String>, Vec<String>), String> {
    let rows = read_structs(meta, "synsets", &[id_field, "WNID", "words", "num_children"])?;
    let mut leaves = Vec::new();
    for (i, row) in rows.into_iter().enumerate() {
        let [id, wnid, words, children] = <[Value; 4]>::try_from(row).expect("four fields were asked for");
        let (Value::Number(id), Value::Text(wnid), Value::Number(children)) = (id, wnid, children) else {
            return Err(format!("synset {} has not the fields of a synset", i + 1));
        };
        if children == 0.0 {
            let words = if let Value::Text(words) = words { words } else { String::new() };
            leaves.push((id, wnid, words));
        }
    }
    leaves.sort_by(|a, b| a.0.total_cmp(&b.0));
    if let Some((i, leaf)) = leaves.iter().enumerate().find(|(i, leaf)| leaf.0 != (i + 1) as f64) {
        return Err(format!(
            "{} synsets without children, and the {}th has the id {}: 1 to {} were expected",
            leaves.len(),
            i + 1,
            leaf.0,
            leaves.len()
        ));
    }
    let mut seen = std::collections::HashSet::new();
    if let Some((_, twice, _)) = leaves.iter().find(|leaf| !seen.insert(&leaf.1)) {
        return Err(format!("the synset {twice} occurs twice"));
    }
    Ok(leaves.into_iter().map(|(_, wnid, words)| (wnid, words)).unzip())
}

/// Classes from a file with one id (from 1) a line.
///
/// # Errors
/// The line that is wrong.
pub fn ground_truth(text: &[u8], classes: usize) -> Result<Vec<u32>, String> {
    let text = std::str::from_utf8(text).map_err(|_| "not text".to_string())?;
    let line = |(i, line): (usize, &str)| match line.trim().parse::<usize>() {
        Ok(id) if (1..=classes).contains(&id) => Ok(id as u32 - 1),
        _ => {
            let shown: String = line.trim().chars().take(40).collect();
            Err(format!("line {}: {shown:?} is not an id from 1 to {classes}", i + 1))
        }
    };
    text.trim_end().lines().enumerate().map(line).collect()
}
