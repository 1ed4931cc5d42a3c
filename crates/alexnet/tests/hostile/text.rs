//! Networks and recipes as TOML.

use crate::harness::{Reached, Target};
use alexnet::Network;
use alexnet::train::recipe::{self, Recipe};

const STAGES: [&str; 3] = ["not TOML", "TOML, refused", "accepted"];

/// TOML that is no UTF-8 never comes to the parser: the program refuses it when it reads the file.
fn parse(bytes: &[u8], read: impl Fn(&str) -> Option<String>) -> Reached {
    let text = String::from_utf8_lossy(bytes);
    match read(&text) {
        None => Reached::end(&STAGES),
        Some(error) => Reached::refused(usize::from(toml::from_str::<toml::Table>(&text).is_ok()), error),
    }
}

const TOKENS: [&str; 12] = [
    "\n[[layer]]\n",
    "[[[[[[[[[[[[[[[[",
    "{a={a={a={",
    "\"\"\"",
    "nan",
    "-inf",
    "1e400",
    "0x7fffffffffffffff",
    "1979-05-27",
    "kernel = 0",
    "stride = 0",
    "groups = 3",
];

#[test]
fn mutated_networks() {
    let mini = alexnet::zoo::by_name("alexnet-mini", 10).unwrap().to_toml();
    let tiny = "name = 'tiny'\ninput = [3, 32, 32]\n[[layer]]\nname = 'conv1'\ntype = 'conv'\nfilters = 16\n\
                kernel = 5\npad = [0, 3]\nweight = { gaussian = 0.01 }\n[[layer]]\nname = 'n'\ntype = 'lrn'\n\
                size = 5\nk = 2.0\nalpha = 1e-4\nalpha_div_n = false\nbeta = 0.75\n[[layer]]\nname = 'fc2'\n\
                type = 'linear'\noutputs = 10\n";
    Target {
        name: "network TOML",
        seeds: vec![mini.into_bytes(), tiny.as_bytes().to_vec()],
        tokens: TOKENS.map(|t| t.as_bytes().to_vec()).to_vec(),
        text: true,
        repair: &|_| (),
        stages: &STAGES,
        deep: (1, 0.15),
        parse: &|bytes| {
            parse(bytes, |text| Network::from_toml(text, "net.toml").err().map(|e| e.to_string()))
        },
    }
    .run();
}

#[test]
fn mutated_recipes() {
    let recipe = |name| recipe::load(name).unwrap().to_toml().into_bytes();
    Target {
        name: "recipe TOML",
        seeds: vec![recipe("mini"), recipe("finetune")],
        tokens: TOKENS.map(|t| t.as_bytes().to_vec()).to_vec(),
        text: true,
        repair: &|_| (),
        stages: &STAGES,
        deep: (1, 0.15),
        parse: &|bytes| {
            parse(bytes, |text| Recipe::from_toml(text, "recipe.toml").err().map(|e| e.to_string()))
        },
    }
    .run();
}
