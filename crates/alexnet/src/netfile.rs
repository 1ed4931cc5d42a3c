//! Networks as TOML, in one form for all: the program writes it into checkpoints and reads it from files.
//!
//! ```toml
//! name = "tiny"
//! source = "an example"
//! input = [3, 32, 32]
//! loss = "softmax"
//! layer = [
//!     { name = "conv1", type = "conv", filters = 16, kernel = 5, weight = { gaussian = 0.01 }, bias = { constant = 0.0 } },
//!     { name = "relu1", type = "relu" },
//!     { name = "pool1", type = "pool", kind = "max", size = 3, stride = 2, rounding = "ceil", ties = "all" },
//!     { name = "fc2", type = "linear", outputs = 10 },
//! ]
//! ```
//!
//! `type` is one of `conv`, `relu`, `tanh`, `logistic`, `abs-tanh`, `lrn`, `spatial-lrn`, `pool`, `linear`, `dropout`,
//! `batch-norm`;
//! the other keys are the fields of the struct of that name in [`crate::net`]. `[[layer]]` tables say the same.

use crate::error::Result;
use crate::net::{Activation, Layer, Loss, Network, Op, Shape};
use crate::toml_error::{at, explain, unknown};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::fmt::Write as _;
use toml::de::{DeTable, DeValue, ValueDeserializer};
use toml::{Spanned, ser::ValueSerializer};

/// The words that `type` takes.
const KINDS: [&str; 11] = [
    "conv",
    "relu",
    "tanh",
    "logistic",
    "abs-tanh",
    "lrn",
    "spatial-lrn",
    "pool",
    "linear",
    "dropout",
    "batch-norm",
];

/// Everything but the layers.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Head {
    name: String,
    #[serde(default)]
    source: String,
    input: [usize; 3],
    #[serde(default)]
    loss: Loss,
    // Taken out before; named here so that a typo of it gets a hint.
    #[serde(default, rename = "layer")]
    _layer: Option<()>,
}

/// Activations have no fields.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

impl Network {
    /// The network as TOML, one line a layer.
    pub fn to_toml(&self) -> String {
        let Shape { c, h, w } = self.input;
        let mut text = format!(
            "name = {}\nsource = {}\ninput = [{c}, {h}, {w}]\nloss = {}\nlayer = [\n",
            value(&self.name),
            value(&self.source),
            value(&self.loss)
        );
        for layer in &self.layers {
            let fields = match &layer.op {
                Op::Conv(conv) => value(conv),
                Op::Activation(_) => value(&Nothing {}),
                Op::Lrn(lrn) => value(lrn),
                Op::SpatialLrn(lrn) => value(lrn),
                Op::Pool(pool) => value(pool),
                Op::Linear(linear) => value(linear),
                Op::Dropout(dropout) => value(dropout),
                Op::BatchNorm(norm) => value(norm),
            };
            let inner = fields.strip_prefix('{').and_then(|f| f.strip_suffix('}')).unwrap_or(&fields).trim();
            let comma = if inner.is_empty() { "" } else { ", " };
            let (name, kind) = (value(&layer.name), layer.op.kind());
            let _ = writeln!(text, "    {{ name = {name}, type = \"{kind}\"{comma}{inner} }},");
        }
        text + "]\n"
    }

    /// Reads a network from TOML. `origin` is where the text came from, for messages.
    ///
    /// # Errors
    /// If the text is not TOML, has an unknown or missing key, or the layers do not fit together; the message begins
    /// with `origin` and the line.
    pub fn from_toml(text: &str, origin: &str) -> Result<Self> {
        let mut root = DeTable::parse(text).map_err(|e| explain(text, origin, &e))?;
        let layers = root.get_mut().remove("layer");
        let span = root.span();
        let table = Spanned::new(span, DeValue::Table(root.into_inner()));
        let head: Head = read(text, origin, table)?;
        let [c, h, w] = head.input;
        let mut net = Network {
            name: head.name,
            source: head.source,
            input: Shape::new(c, h, w),
            layers: vec![],
            loss: head.loss,
        };
        let missing = "there are no layers; each is a [[layer]] table with name and type";
        let Some(layers) = layers else { return Err(at(text, origin, None, missing)) };
        let span = layers.span();
        let DeValue::Array(tables) = layers.into_inner() else {
            return Err(at(text, origin, Some(span), missing));
        };
        let mut spans = Vec::new();
        for table in tables {
            spans.push(table.span());
            net.layers.push(read_layer(text, origin, table)?);
        }
        if let Err(error) = net.trace() {
            let message = error.to_string();
            // The last layer of that name: of two alike, the second is the wrong one.
            let named = |l: &Layer| message.starts_with(&format!("layer {}: ", l.name));
            let span = net.layers.iter().rposition(named).map(|i| spans[i].clone());
            return Err(at(text, origin, span, &message));
        }
        Ok(net)
    }
}

fn read_layer(text: &str, origin: &str, table: Spanned<DeValue>) -> Result<Layer> {
    let span = table.span();
    let DeValue::Table(mut fields) = table.into_inner() else {
        return Err(at(text, origin, Some(span), "a layer is a table with name and type"));
    };
    let mut word = |key: &str| match fields.remove(key) {
        Some(value) => {
            let span = value.span();
            Ok((read::<String>(text, origin, value)?, span))
        }
        None => Err(at(text, origin, Some(span.clone()), &format!("this layer has no `{key}`"))),
    };
    let (name, _) = word("name")?;
    let (kind, kind_span) = word("type")?;
    let rest = Spanned::new(span, DeValue::Table(fields));
    let activation = |a, rest| read::<Nothing>(text, origin, rest).map(|_| Op::Activation(a));
    let op = match kind.as_str() {
        "conv" => Op::Conv(read(text, origin, rest)?),
        "relu" => activation(Activation::Relu, rest)?,
        "tanh" => activation(Activation::Tanh, rest)?,
        "logistic" => activation(Activation::Logistic, rest)?,
        "abs-tanh" => activation(Activation::AbsTanh, rest)?,
        "lrn" => Op::Lrn(read(text, origin, rest)?),
        "spatial-lrn" => Op::SpatialLrn(read(text, origin, rest)?),
        "pool" => Op::Pool(read(text, origin, rest)?),
        "linear" => Op::Linear(read(text, origin, rest)?),
        "dropout" => Op::Dropout(read(text, origin, rest)?),
        "batch-norm" => Op::BatchNorm(read(text, origin, rest)?),
        other => return Err(at(text, origin, Some(kind_span), &unknown("layer type", other, &KINDS))),
    };
    Ok(Layer { name, op })
}

fn read<T: DeserializeOwned>(text: &str, origin: &str, value: Spanned<DeValue>) -> Result<T> {
    T::deserialize(ValueDeserializer::from(value)).map_err(|e| explain(text, origin, &e))
}

/// A value as TOML writes it within a line.
fn value<T: Serialize>(v: &T) -> String {
    let mut text = String::new();
    v.serialize(ValueSerializer::new(&mut text)).expect("these types have a form in TOML");
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::Init;
    use crate::zoo;

    #[test]
    fn the_whole_zoo_survives_the_round_trip() {
        for net in zoo::all() {
            let text = net.to_toml();
            assert_eq!(Network::from_toml(&text, "zoo").unwrap(), net, "{text}");
        }
    }

    #[test]
    fn layer_tables_and_defaults() {
        let text = "name = \"t\"\ninput = [1, 8, 8]\n[[layer]]\nname = \"c\"\ntype = \"conv\"\nfilters = 2\nkernel = 3\n\
                    pad = [0, 2]\n[[layer]]\nname = \"a\"\ntype = \"abs-tanh\"\n[[layer]]\nname = \"f\"\n\
                    type = \"linear\"\noutputs = 3\n";
        let net = Network::from_toml(text, "t.toml").unwrap();
        let Op::Conv(conv) = &net.layers[0].op else { panic!("not a convolution") };
        assert_eq!((conv.stride, conv.groups, conv.pad.before, conv.pad.after), (1, 1, 0, 2));
        assert_eq!(conv.weight, Init::FanIn);
        assert_eq!(net.layers[1].op, Op::Activation(Activation::AbsTanh));
        assert_eq!(net.classes(), 3);
        assert_eq!(Network::from_toml(&net.to_toml(), "again").unwrap(), net);
    }

    /// What is wrong, and the place and words that the message must have.
    #[test]
    fn errors_point_at_the_line() {
        let good = "name = \"t\"\ninput = [3, 8, 8]\nlayer = [\n\
                    { name = \"c\", type = \"conv\", filters = 4, kernel = 3, groups = 1 },\n\
                    { name = \"r\", type = \"relu\" },\n\
                    { name = \"f\", type = \"linear\", outputs = 3 },\n]\n";
        Network::from_toml(good, "n.toml").unwrap();
        for (from, to, expected) in [
            ("filters", "filtres", ["n.toml:4:", "did you mean `filters`?"]),
            ("kernel = 3, ", "", ["n.toml:4:", "kernel"]),
            ("kernel = 3", "kernel = \"3\"", ["n.toml:4:", "string"]),
            ("kernel = 3", "kernel = -3", ["n.toml:4:", "-3"]),
            ("groups = 1", "groups = 2", ["n.toml:4:", "groups"]),
            ("kernel = 3", "kernel = 30", ["n.toml:4:", "does not fit"]),
            ("\"relu\"", "\"relus\"", ["n.toml:5:", "did you mean `relu`?"]),
            ("\"relu\"", "\"relu\", size = 3", ["n.toml:5:", "size"]),
            ("\"f\"", "\"c\"", ["n.toml:6:", "twice"]),
            ("input", "inputs", ["n.toml:2:", "did you mean `input`?"]),
            ("layer = [", "layers = [", ["n.toml:3:", "did you mean `layer`?"]),
            ("outputs = 3 }", "outputs = 3", ["n.toml:", ""]),
            ("name = \"t\"\n", "", ["n.toml:", "name"]),
            ("[3, 8, 8]", "[3, 8]", ["n.toml:2:", ""]),
            ("filters = 4", "filters = 4000000000000000000", ["n.toml:4:", "too large"]),
            ("pe = \"linear\", outputs = 3", "pe = \"relu\"", ["n.toml", "last layer"]),
        ] {
            let bad = good.replacen(from, to, 1);
            assert_ne!(bad, good);
            let error = Network::from_toml(&bad, "n.toml").unwrap_err().to_string();
            assert!(expected.iter().all(|part| error.contains(part)), "{from} -> {to}: {error}");
        }
        assert!(Network::from_toml("", "n.toml").is_err());
        assert!(Network::from_toml("layer = 3\nname = 'x'\ninput = [1, 1, 1]", "n.toml").is_err());
    }
}
