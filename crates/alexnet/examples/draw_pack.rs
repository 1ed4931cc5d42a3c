//! Draws pictures into a pack file: `draw_pack OUT [TRAIN_PER_CLASS VAL_PER_CLASS SEED]`.

use alexnet::data::generator::{SIDE, TRAIN_PER_CLASS, VAL_PER_CLASS, drawn_pack};

fn main() -> alexnet::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |i: usize, default: usize| arguments.get(i).and_then(|a| a.parse().ok()).unwrap_or(default);
    let Some(out) = arguments.first() else {
        return Err(alexnet::Error::Config("draw_pack OUT [TRAIN_PER_CLASS VAL_PER_CLASS SEED]".into()));
    };
    let pack = drawn_pack(number(3, 1) as u64, number(1, TRAIN_PER_CLASS), number(2, VAL_PER_CLASS), SIDE)?;
    pack.save(std::path::Path::new(out))
}
