//! What `alexnet eval` says: tables that fit in 80 columns, and the same as JSON.

use super::Answers;
use super::measure::{Alone, Figures};
use crate::args::Eval;
use crate::plan::{
    self,
    eval::{Material, Request, Source},
};
use crate::terminal::{Words, beginning, count, ending, percent, plural, table};
use alexnet::eval::Tally;
use serde_json::{Value, json};
use std::io::Result;

/// How many of the most confused pairs are printed if nobody asks.
const CONFUSED: usize = 5;
/// Columns for a network's name.
const NAME: usize = 30;
/// Columns for a class in the table of classes.
const CLASS: usize = 24;
/// Columns for the class that it is taken for.
const TAKEN: usize = 20;

/// What is about to be measured.
pub fn introduction(words: &Words, material: &Material, views: usize) -> Result<()> {
    for member in &material.members {
        words.line(&match &member.source {
            Source::Model(c) => format!("model     {}, {}", c.model.net.name, c.model.path.display()),
            Source::Saved(p) => {
                format!("model     {}, {} (saved answers, views: {})", p.net(), p.file().display(), p.views())
            }
        })?;
    }
    if let Some(pack) = material.pack() {
        words.line(&format!("data      {}", plan::data_words(pack)))?;
        for line in plan::unused_words(pack, &material.skipped) {
            words.line(&line)?;
        }
    }
    if let Some(note) = material.matching.as_ref().and_then(|m| m.note.as_ref()) {
        words.line(&format!("classes   {note}"))?;
    }
    let views = match material.pack() {
        Some(_) => format!(", {}", plural(views, "view each", "views each")),
        None => String::new(),
    };
    let pictures = plural(material.len(), "picture", "pictures");
    let classes = plural(material.classes.len(), "class", "classes");
    words.line(&format!("measured  {pictures} of {classes}{views}:\n          {}", material.part))?;
    material.warnings.iter().try_for_each(|warning| words.line(warning))
}

/// The error rates: a line for one network, a table for several.
pub fn figures(words: &Words, material: &Material, figures: &Figures, tally: &Tally) -> Result<()> {
    if let [alone] = &figures.members[..] {
        let speed =
            alone.computed.as_ref().map_or(String::new(), |(rate, _)| format!(", {rate:.1} images/s"));
        words.line(&format!(
            "top-1 error {}, top-5 error {}",
            percent(tally.top1_error()),
            percent(tally.top5_error())
        ))?;
        return words.line(&format!(
            "mean class accuracy {}, loss {:.4} ({}{speed})",
            percent(tally.mean_class_accuracy()),
            tally.mean_log_loss(),
            plural(tally.pictures() as usize, "picture", "pictures"),
        ));
    }
    let heads = ["", "weight", "top-1 err", "top-5 err", "class acc", "loss"];
    let mut rows = vec![heads.map(String::from).to_vec()];
    let mut row = |name: String, weight: String, tally: &Tally| {
        rows.push(vec![
            name,
            weight,
            percent(tally.top1_error()),
            percent(tally.top5_error()),
            percent(tally.mean_class_accuracy()),
            format!("{:.4}", tally.mean_log_loss()),
        ]);
    };
    for ((member, alone), weight) in material.members.iter().zip(&figures.members).zip(&figures.weights) {
        row(ending(&member.name, NAME), format!("{weight:.3}"), &alone.tally);
    }
    match &figures.fitted {
        Some(fitted) => {
            row("average, equal weights".into(), String::new(), &fitted.equal);
            row("average, fitted weights".into(), String::new(), tally);
        }
        None => row("average".into(), String::new(), tally),
    }
    words.line(&table(&rows, &[false, true, true, true, true, true]))?;
    match &figures.fitted {
        Some(fitted) => words.line(&format!(
            "fitted    on {} of the pictures; the table is of the other {}\n          weights {}: top-5 error {} \
             there, with equal weights {}",
            count(fitted.pictures),
            count(tally.pictures() as usize),
            listed(&fitted.found.weights),
            percent(fitted.found.top5_error),
            percent(fitted.found.equal_top5_error),
        )),
        None => Ok(()),
    }
}

fn listed(weights: &[f64]) -> String {
    weights.iter().map(|w| format!("{w:.2}")).collect::<Vec<_>>().join(", ")
}

/// Classes, pairs and pictures, as the flags ask.
pub fn details(words: &Words, args: &Eval, material: &Material, answers: &Answers) -> Result<()> {
    if args.per_class {
        words.line(&class_table(&material.classes, &answers.tally))?;
    }
    let name = |class: u32| material.classes[class as usize].as_str();
    let pairs = answers.tally.most_confused(args.confusions.unwrap_or(CONFUSED));
    if !pairs.is_empty() {
        words.line("most confused:")?;
    }
    for (label, guess, n) in pairs {
        words.line(&format!("  {} taken for {}: {}", name(label), name(guess), count(n as usize)))?;
        if args.confusions.is_some() {
            for &i in answers.mistakes.examples(label, guess) {
                words.line(&format!("    {}", material.path(i as usize)))?;
            }
        }
    }
    let worst = answers.mistakes.worst();
    if !worst.is_empty() {
        words.line("most confidently wrong:")?;
    }
    for wrong in worst {
        words.line(&format!(
            "  {}\n    taken for {} ({}), not for {} ({}); loss {:.2}",
            material.path(wrong.picture as usize),
            name(wrong.guess),
            percent(wrong.guess_probability.into()),
            name(wrong.label),
            percent(wrong.label_probability.into()),
            wrong.loss()
        ))?;
    }
    Ok(())
}

/// A row a class, the worst first; classes without pictures are left out.
fn class_table(classes: &[String], tally: &Tally) -> String {
    let heads = ["class", "pictures", "top-1 err", "top-5 err", "taken for"];
    let mut rows = vec![heads.map(String::from).to_vec()];
    let mut order: Vec<(usize, f64, f64)> = (0..classes.len())
        .filter_map(|c| Some((c, 1.0 - tally.class_accuracy(c)?, 1.0 - tally.class_top5_accuracy(c)?)))
        .collect();
    order.sort_by(|a, b| b.1.total_cmp(&a.1).then(b.2.total_cmp(&a.2)).then(a.0.cmp(&b.0)));
    for (class, top1, top5) in order {
        let taken = tally.taken_for(class as u32).map(|(guess, n)| {
            let n = format!(" {}", count(n as usize));
            beginning(&classes[guess as usize], TAKEN - n.len()) + &n
        });
        rows.push(vec![
            beginning(&classes[class], CLASS),
            count(tally.class_pictures(class) as usize),
            percent(top1),
            percent(top5),
            taken.unwrap_or_default(),
        ]);
    }
    table(&rows, &[false, true, true, true, false])
}

/// Everything as one object; rates are fractions.
pub fn json(
    args: &Eval,
    request: &Request,
    material: &Material,
    figures: &Figures,
    answers: &Answers,
    passed: bool,
) -> Value {
    let members: Vec<Value> =
        material.members.iter().zip(&figures.members).zip(&figures.weights).map(member).collect();
    let name = |class: u32| &material.classes[class as usize];
    let path = |i: u32| material.path(i as usize);
    let mut object = rates(&answers.tally);
    let first = &members[0];
    // Of one network: what it is and how fast. Of several: what the first computed one says for all.
    let alone = members.len() == 1;
    let computed: Vec<&Value> = members.iter().filter(|m| !m["kernel"].is_null()).collect();
    object["model"] = if alone { first["model"].clone() } else { Value::Null };
    object["net"] = if alone { first["net"].clone() } else { Value::Null };
    object["images_per_s"] = if alone { first["images_per_s"].clone() } else { Value::Null };
    object["kernel"] = computed.first().map_or(Value::Null, |m| m["kernel"].clone());
    object["part"] = json!(material.part);
    object["unreadable"] = json!(material.pack().map_or(0, |pack| pack.unreadable().len()));
    object["classes"] = json!(material.classes.len());
    object["classes_matched"] = json!(material.matching.as_ref().and_then(|m| m.note.as_ref()));
    object["views"] = json!(request.views.len());
    object["passed"] = json!(passed);
    object["warnings"] = json!(material.warnings);
    object["members"] = json!(members);
    if let Some(fitted) = &figures.fitted {
        object["fit"] = json!({
            "images": fitted.pictures,
            "weights": fitted.found.weights,
            "top5_error": fitted.found.top5_error,
            "equal_top5_error": fitted.found.equal_top5_error,
        });
        object["equal"] = rates(&fitted.equal);
    }
    if args.per_class {
        let tally = &answers.tally;
        let class = |c: usize| {
            let error = |accuracy: Option<f64>| accuracy.map(|a| 1.0 - a);
            let taken = tally.taken_for(c as u32);
            json!({
                "class": material.classes[c],
                "images": tally.class_pictures(c),
                "top1_error": error(tally.class_accuracy(c)),
                "top5_error": error(tally.class_top5_accuracy(c)),
                "taken_for": taken.map(|(guess, n)| json!({ "class": name(guess), "images": n })),
            })
        };
        object["per_class"] = (0..material.classes.len()).map(class).collect();
    }
    if let Some(k) = args.confusions {
        let pair = |(label, guess, n): (u32, u32, u64)| {
            let examples: Vec<&str> =
                answers.mistakes.examples(label, guess).iter().map(|&i| path(i)).collect();
            json!({ "class": name(label), "taken_for": name(guess), "images": n, "examples": examples })
        };
        object["confusions"] = answers.tally.most_confused(k).into_iter().map(pair).collect();
    }
    if args.worst > 0 {
        let wrong = answers.mistakes.worst().into_iter().map(|w| {
            json!({
                "path": path(w.picture),
                "class": name(w.label),
                "probability": w.label_probability,
                "taken_for": name(w.guess),
                "taken_for_probability": w.guess_probability,
                "loss": w.loss(),
            })
        });
        object["worst"] = wrong.collect();
    }
    object
}

fn rates(tally: &Tally) -> Value {
    json!({
        "images": tally.pictures(),
        "top1_error": tally.top1_error(),
        "top5_error": tally.top5_error(),
        "mean_class_accuracy": tally.mean_class_accuracy(),
        "loss": tally.mean_log_loss(),
    })
}

fn member(((member, alone), weight): ((&plan::eval::Member, &Alone), &f64)) -> Value {
    let mut object = rates(&alone.tally);
    object["model"] = json!(match &member.source {
        Source::Model(computed) => computed.model.path.display().to_string(),
        Source::Saved(predictions) => predictions.file().display().to_string(),
    });
    object["net"] = json!(member.net());
    object["weight"] = json!(weight);
    object["images_per_s"] = json!(alone.computed.as_ref().map(|(rate, _)| rate));
    object["kernel"] = json!(alone.computed.as_ref().map(|(_, kernel)| kernel));
    object
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_listed_worst_first_within_80_columns() {
        let classes: Vec<String> = ["a".into(), "b".repeat(60), "c".repeat(60), "empty".into()].to_vec();
        let mut tally = Tally::new(4);
        tally.add(&[1.0, 0.0, 0.0, 0.0], 0);
        tally.add(&[0.0, 0.0, 1.0, 0.0], 1);
        tally.add(&[0.0, 0.0, 1.0, 0.0], 2);
        tally.add(&[0.0, 1.0, 0.0, 0.0], 2);
        let text = class_table(&classes, &tally);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 4, "{text}");
        assert!(
            lines[1].starts_with("bbb") && lines[2].starts_with("ccc") && lines[3].starts_with('a'),
            "{text}"
        );
        assert!(lines[1].contains("100.00 %") && lines[2].ends_with("… 1"), "{text}");
        assert!(lines.iter().all(|line| line.chars().count() <= 80), "{text}");
    }
}
