//! `alexnet recipe`: the recipes, one of them with its comments, and where two differ.

use crate::args::{Recipe as Arguments, RecipeCommand, RecipeDiff};
use crate::failure::Outcome;
use crate::plan;
use crate::terminal::{count, percent, print_line, table};
use alexnet::train::recipe::{self, Expected, Recipe, difference};
use alexnet::{Error, Network, Result};
use serde_json::{Value, json};
use std::path::Path;

/// Runs `alexnet recipe`.
pub fn run(args: &Arguments) -> Outcome {
    let text = match (&args.command, &args.name, args.json) {
        (Some(RecipeCommand::Diff(diff)), ..) => compare(diff)?,
        (None, None, false) => list()?,
        (None, None, true) => list_json()?.to_string(),
        (None, Some(name), false) => source(name)?.trim_end().into(),
        (None, Some(name), true) => object(&recipe::load(name)?)?.to_string(),
    };
    Ok(print_line(&text)?)
}

/// A recipe's text as it was written; read all the same, so that a wrong one is refused.
fn source(name: &str) -> Result<String> {
    recipe::load(name)?;
    match recipe::text(name) {
        Some(text) => Ok(text.into()),
        None => plan::read_text(Path::new(name), "recipe"),
    }
}

fn built_in() -> Result<Vec<Recipe>> {
    recipe::names().map(recipe::load).collect()
}

fn list() -> Result<String> {
    let mut rows =
        vec![["name", "net", "epochs", "batch", "expected", "what it is"].map(String::from).to_vec()];
    for recipe in built_in()? {
        rows.push(vec![
            recipe.name.clone(),
            recipe.net.clone(),
            count(recipe.epochs as usize),
            count(recipe.batch),
            recipe.expected.as_ref().map(figures).unwrap_or_default(),
            recipe.summary.clone(),
        ]);
    }
    let right = [false, false, true, true, false, false];
    Ok(format!(
        "{}\n\nexpected: top-1 / top-5 error, or mean class accuracy. `alexnet recipe NAME` prints one with its sources, \
         `alexnet recipe diff A B` what differs.",
        table(&rows, &right)
    ))
}

fn list_json() -> Result<Value> {
    Ok(json!({ "recipes": built_in()?.iter().map(object).collect::<Result<Vec<_>>>()? }))
}

fn object(recipe: &Recipe) -> Result<Value> {
    serde_json::to_value(recipe).map_err(|e| Error::Config(format!("recipe {}: {e}", recipe.name)))
}

/// The published figures, shortly.
fn figures(expected: &Expected) -> String {
    let parts = [
        expected.top1_error.map(percent),
        expected.top5_error.map(percent),
        expected.mean_class_accuracy.map(|a| format!("{} accuracy", percent(a))),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join(" / ")
}

/// The published result in words.
pub fn expected_words(expected: &Expected) -> String {
    let parts = [
        expected.top1_error.map(|e| format!("top-1 error {}", percent(e))),
        expected.top5_error.map(|e| format!("top-5 error {}", percent(e))),
        expected.mean_class_accuracy.map(|a| format!("mean class accuracy {}", percent(a))),
    ];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    format!("{} on {} ({})", parts.join(", "), expected.on, expected.source)
}

/// A recipe and the network that it trains.
fn with_network(name: &str) -> Result<(Recipe, Network)> {
    let recipe = recipe::load(name)?;
    let net = recipe.apply(plan::network(&recipe.net, None)?)?;
    Ok((recipe, net))
}

fn compare(diff: &RecipeDiff) -> Result<String> {
    let ((a, net_a), (b, net_b)) = (with_network(&diff.a)?, with_network(&diff.b)?);
    let found = difference::between((&a, &net_a), (&b, &net_b));
    if diff.json {
        let entries: Vec<Value> = found.iter().map(|d| json!({ "key": d.key, "a": d.a, "b": d.b })).collect();
        return Ok(json!({ "a": a.name, "b": b.name, "differences": entries }).to_string());
    }
    if found.is_empty() {
        return Ok(format!("{} and {} are the same", diff.a, diff.b));
    }
    let mut rows = vec![vec!["key".to_string(), a.name, b.name]];
    let none = || "-".to_string();
    let mut orders = Vec::new();
    for d in found {
        // Too long for a column.
        if d.key == "net.order" {
            orders = vec![d.a.unwrap_or_default(), d.b.unwrap_or_default()];
            continue;
        }
        rows.push(vec![d.key, d.a.unwrap_or_else(none), d.b.unwrap_or_else(none)]);
    }
    let mut text = table(&rows, &[false; 3]);
    for (name, order) in rows[0][1..].iter().zip(orders) {
        text += &format!("\n\nlayers of {name}: {order}");
    }
    Ok(text)
}
