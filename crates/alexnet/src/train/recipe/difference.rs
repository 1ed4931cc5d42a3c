//! What differs: between two recipes, between a recipe and what it was read from, between a recipe's pictures and a run's.

use super::Recipe;
use crate::net::Network;
use std::collections::BTreeMap;

/// Keys that describe a recipe and change nothing in a run.
const ABOUT: [&str; 4] = ["name", "summary", "source", "deviations"];

/// A key on which two sides differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The full key: `bias.lr`, or `net.conv3.weight.gaussian` for a layer of the network.
    pub key: String,
    /// The first side's value as TOML, if it has one.
    pub a: Option<String>,
    /// The second side's.
    pub b: Option<String>,
}

/// The keys on which two recipes differ, with the networks that they train: first the recipes', then the networks'.
/// Names, summaries, sources and deviations are left out.
pub fn between(a: (&Recipe, &Network), b: (&Recipe, &Network)) -> Vec<Difference> {
    let about = |d: &Difference| ABOUT.contains(&d.key.as_str());
    let mut all = keys(&a.0.keys(), &b.0.keys());
    all.retain(|d| !about(d));
    all.extend(keys(&network_keys(a.1), &network_keys(b.1)));
    all
}

/// The keys that differ, in order.
fn keys(a: &BTreeMap<String, String>, b: &BTreeMap<String, String>) -> Vec<Difference> {
    let all: std::collections::BTreeSet<&String> = a.keys().chain(b.keys()).collect();
    all.into_iter()
        .filter(|key| a.get(*key) != b.get(*key))
        .map(|key| Difference { key: key.clone(), a: a.get(key).cloned(), b: b.get(key).cloned() })
        .collect()
}

impl Recipe {
    /// Every value as TOML under its full key.
    pub fn keys(&self) -> BTreeMap<String, String> {
        let mut values = BTreeMap::new();
        // Strings, numbers, arrays and tables with text keys: all have a form in TOML.
        let table = toml::Table::try_from(self).expect("a recipe has a form in TOML");
        flatten("", &toml::Value::Table(table), &mut values);
        values
    }

    /// What this recipe changes in `original`, a line a key: `epochs = 5, not 20`.
    pub fn differences(&self, original: &Recipe) -> Vec<String> {
        keys(&self.keys(), &original.keys())
            .into_iter()
            .map(|Difference { key, a, b }| match (a, b) {
                (Some(ours), Some(theirs)) => format!("{key} = {ours}, not {theirs}"),
                (Some(ours), None) => format!("{key} = {ours}"),
                (None, theirs) => format!("no {key}, which was {}", theirs.unwrap_or_default()),
            })
            .collect()
    }

    /// Where a run on so many classes and training pictures is another experiment than the recipe's source describes.
    pub fn differences_of_data(&self, classes: usize, pictures: usize) -> Vec<String> {
        let mut lines = Vec::new();
        if let Some(data) = &self.data {
            if classes != data.classes {
                lines.push(format!("{classes} classes, not the {} of {}", data.classes, data.set));
            }
            if let Some(theirs) = data.pictures.filter(|&theirs| theirs != pictures) {
                lines.push(format!("{pictures} training pictures, not the {theirs} of {}", data.set));
            }
        }
        if let (Some(follows), None) = (&self.follows, &self.from) {
            lines.push(format!(
                "fresh weights in every layer, where the source starts from a run of recipe {follows}; name a checkpoint \
                 of it with --from"
            ));
        }
        lines
    }
}

/// A network's values: those of each layer under `net.<layer>`, and the order of layers if that differs.
fn network_keys(net: &Network) -> BTreeMap<String, String> {
    let mut values = BTreeMap::new();
    // Written by `to_toml` a moment ago.
    let mut table: toml::Table = net.to_toml().parse().expect("a network has a form in TOML");
    let layers = match table.remove("layer") {
        Some(toml::Value::Array(layers)) => layers,
        _ => vec![],
    };
    for about in ["name", "source"] {
        table.remove(about);
    }
    flatten("net", &toml::Value::Table(table), &mut values);
    let names: Vec<&str> = net.layers.iter().map(|l| l.name.as_str()).collect();
    values.insert("net.order".into(), names.join(" "));
    for (layer, name) in layers.iter().zip(names) {
        let mut layer = layer.clone();
        if let Some(table) = layer.as_table_mut() {
            table.remove("name");
        }
        flatten(&format!("net.{name}"), &layer, &mut values);
    }
    values
}

/// Every value under its full key.
fn flatten(prefix: &str, value: &toml::Value, into: &mut BTreeMap<String, String>) {
    match value {
        toml::Value::Table(table) => {
            for (key, value) in table {
                let path = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
                flatten(&path, value, into);
            }
        }
        value => {
            into.insert(prefix.into(), value.to_string());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::load;
    use super::*;
    use crate::zoo;

    #[test]
    fn the_paper_and_the_code_differ_where_the_sources_say() {
        let [a, b] = ["krizhevsky-2012", "krizhevsky-2012-code"].map(|name| load(name).unwrap());
        let [net_a, net_b] = [&a, &b].map(|r| r.apply(zoo::by_name(&r.net, 1000).unwrap()).unwrap());
        let found = between((&a, &net_a), (&b, &net_b));
        let of = |key: &str| {
            let d = found.iter().find(|d| d.key == key).unwrap_or_else(|| panic!("{key}: {found:?}"));
            (d.a.as_deref(), d.b.as_deref())
        };
        for (key, paper, code) in [
            ("bias.lr", Some("1.0"), Some("2.0")),
            ("bias.schedule.kind", None, Some("\"constant\"")),
            ("augment.shared_by", Some("1"), Some("32")),
            ("augment.colour_noise_until", None, Some("67")),
            ("reshuffle", Some("true"), Some("false")),
            ("network.lrn_alpha_divided", Some("false"), Some("true")),
            ("net.conv4.weight.gaussian", Some("0.01"), Some("0.03")),
            ("net.norm1.alpha_div_n", Some("false"), Some("true")),
            ("net.cnorm2.type", None, Some("\"spatial-lrn\"")),
        ] {
            assert_eq!(of(key), (paper, code), "{key}");
        }
        assert!(of("net.order").0.unwrap().starts_with("conv1 relu1 norm1 pool1"));
        assert!(of("net.order").1.unwrap().starts_with("conv1 norm1 pool1 relu1"));
        assert!(found.iter().all(|d| !["name", "summary", "lr", "batch"].contains(&d.key.as_str())));
        assert!(between((&a, &net_a), (&a, &net_a)).is_empty());
    }

    #[test]
    fn other_pictures_and_a_missing_start_are_told() {
        let recipe = load("finetune-conv6").unwrap();
        let lines = recipe.differences_of_data(12, 1_281_167);
        assert_eq!(lines.len(), 2, "{lines:?}");
        assert!(lines[0].contains("12 classes, not the 1000 of ILSVRC-2012"), "{lines:?}");
        assert!(lines[1].contains("recipe pretrain-conv6-2011"), "{lines:?}");
        assert!(load("krizhevsky-2012").unwrap().differences_of_data(1000, 1_281_167).is_empty());
        assert!(load("mini").unwrap().differences_of_data(3, 7).is_empty());
    }
}
