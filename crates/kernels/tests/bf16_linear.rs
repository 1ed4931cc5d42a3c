//! Linear layers in bf16, and changes of layout, against their definitions, on every engine (AMX emulated where the machine
//! lacks it). Bounds as in `bf16_conv.rs`.

mod common;
mod engines;

use alexnet_kernels::bf16::convert::{self, flat, pair_pictures, paired_len};
use alexnet_kernels::bf16::linear::{self, Backward, Output, Rounded, Weights};
use alexnet_kernels::bf16::{MapLayout, PICTURES, pairs};
use alexnet_kernels::sgd::Update;
use alexnet_kernels::{Context, Isa};
use common::Random;
use common::maps::{Map, assert_rounded, load, room, rounded};
use engines::engines;

/// Weights in the order of a map yield of it what they yield of the map flattened; of small integers, whose sums do not depend
/// on their order.
#[test]
fn linear_layers_read_maps_as_they_lie() {
    let (outputs, count) = (70, 40);
    for (channels, splits, height, width) in [(16, 1, 3, 2), (12, 2, 5, 5), (34, 1, 1, 1)] {
        let map = MapLayout { channels, splits, height, width };
        let inputs = channels * height * width;
        let mut random = Random(inputs as u64);
        let x = Map::random(map, count, true, &mut random);
        let (w, bias) = (random.integers(outputs * inputs), random.integers(outputs));
        let place = linear::strips(outputs, inputs);
        let mut lying = vec![0.0; place.len()];
        for (i, value) in w.iter().enumerate() {
            lying[place.at(i / inputs, i % inputs)] = *value;
        }
        for engine in engines() {
            let mut ctx = Context::new(engine.isa(), 2);
            let mut flattened = vec![0.0; room(&flat(inputs), count)];
            convert::flatten(&mut ctx, &map, count.div_ceil(PICTURES), &x.data, &mut flattened);
            let mut run = |x: &[f32], map: Option<&MapLayout>| {
                let mut weights = Rounded::new(outputs, inputs);
                weights.set(&mut ctx, &lying, map);
                let mut y = vec![0.0; count * outputs];
                let (weights, output) = (Weights::Rounded(&weights), Output::Rows(&mut y));
                linear::forward(&mut ctx, engine, inputs, count, x, weights, &bias, false, output);
                y
            };
            assert!(run(&x.data, Some(&map)) == run(&flattened, None), "{} {map:?}", engine.name());
        }
    }
}

#[test]
fn linear_layers() {
    for engine in engines() {
        for (i, &(inputs, outputs, count)) in
            [(1, 1, 1), (31, 33, 32), (128, 64, 17), (129, 10, 16), (300, 100, 70), (64, 130, 290)]
                .iter()
                .enumerate()
        {
            for integers in [true, false] {
                let what = format!("{} {inputs} {outputs} {count}", engine.name());
                let mut random = Random(i as u64);
                let mut ctx = Context::new(engine.isa(), 2);
                let (x_map, y_map) = (flat(inputs), flat(outputs));
                let x = Map::random(x_map, count, integers, &mut random);
                let dy = Map::random(y_map, count, integers, &mut random);
                let draw = |len, random: &mut Random| {
                    if integers { random.integers(len) } else { random.reals(len) }
                };
                let w = rounded(draw(outputs * inputs, &mut random));
                let v = draw(outputs * inputs, &mut random);
                let bias = draw(outputs, &mut random);
                let mut y = vec![0.0f64; count * outputs];
                for n in 0..count {
                    for o in 0..outputs {
                        let sum =
                            (0..inputs).map(|c| x.at(n, c, 0, 0) * f64::from(w[o * inputs + c])).sum::<f64>();
                        y[n * outputs + o] = sum + f64::from(bias[o]);
                    }
                }
                let (placed_w, placed_v) = (in_strips(&w, inputs), in_strips(&v, inputs));
                let mut copy = Rounded::new(outputs, inputs);
                copy.set(&mut ctx, &placed_w, None);
                for weights in [Weights::Master(&placed_w), Weights::Rounded(&copy)] {
                    let mut got = vec![0.0; room(&y_map, count)];
                    let output = Output::Map(&mut got);
                    linear::forward(&mut ctx, engine, inputs, count, &x.data, weights, &bias, true, output);
                    let want: Vec<f64> = y.iter().map(|v| v.max(0.0)).collect();
                    assert_rounded(&format!("y {what}"), &load(&y_map, count, &got), &want, inputs, integers);
                    let mut got = vec![0.0; count * outputs];
                    let output = Output::Rows(&mut got);
                    linear::forward(&mut ctx, engine, inputs, count, &x.data, weights, &bias, false, output);
                    let bound = if integers { 0.0 } else { 1e-5 * (inputs as f64).sqrt() };
                    common::assert_close(&format!("rows {what}"), &got, &y, bound);
                }

                let blocks = count.div_ceil(PICTURES);
                let mut paired = vec![0.0; paired_len(&x_map, [0, 0], blocks)];
                pair_pictures(&mut ctx, engine, &x_map, [0, 0], blocks, &x.data, &mut paired);
                let mut dy_rows = vec![0.0; linear::unzipped_len(outputs, blocks)];
                let mut db = vec![f32::NAN; outputs];
                linear::unzip(&mut ctx, outputs, blocks, &dy.data, &mut dy_rows, &mut db);
                let terms = if integers { 0.0 } else { 1e-5 * (count as f64).sqrt() };
                let want_db: Vec<f64> =
                    (0..outputs).map(|o| (0..count).map(|n| dy.at(n, o, 0, 0)).sum()).collect();
                common::assert_close(&format!("db {what}"), &db, &want_db, terms);
                for (wanted, masked, lr) in
                    [(true, false, 0.5), (true, true, 0.25), (false, false, 1.0), (true, true, 0.0)]
                {
                    let update = Update { lr, decay: 0.5, momentum: 0.5 };
                    let (mut got_w, mut got_v) = (placed_w.clone(), placed_v.clone());
                    let mut dx = vec![0.0; room(&x_map, count)];
                    let pass = Backward {
                        dx: wanted.then_some(&mut dx),
                        relu: masked.then_some(&x.data),
                        w: &mut got_w,
                        v: &mut got_v,
                        update,
                    };
                    assert!(linear::backward(
                        &mut ctx, engine, inputs, outputs, count, &paired, &dy.data, &dy_rows, pass
                    ));
                    let (mut want_w, mut want_v) = (vec![0.0; w.len()], vec![0.0; w.len()]);
                    for o in 0..outputs {
                        for c in 0..inputs {
                            let at = o * inputs + c;
                            let (w, v) = (f64::from(w[at]), f64::from(v[at]));
                            let g: f64 = (0..count).map(|n| x.at(n, c, 0, 0) * dy.at(n, o, 0, 0)).sum();
                            let lr = f64::from(lr);
                            want_v[at] = if lr > 0.0 { 0.5 * v - 0.5 * lr * w - lr * g } else { v };
                            want_w[at] = if lr > 0.0 { w + want_v[at] } else { w };
                        }
                    }
                    let bound = if integers { 0.0 } else { 1e-5 * (count as f64 + 4.0).sqrt() };
                    common::assert_close(
                        &format!("w {what}"),
                        &rows_of(&got_w, outputs, inputs),
                        &want_w,
                        bound,
                    );
                    common::assert_close(
                        &format!("v {what}"),
                        &rows_of(&got_v, outputs, inputs),
                        &want_v,
                        bound,
                    );
                    if wanted {
                        let mut want = vec![0.0; count * inputs];
                        for n in 0..count {
                            for c in 0..inputs {
                                let sum =
                                    (0..outputs).map(|o| dy.at(n, o, 0, 0) * f64::from(w[o * inputs + c]));
                                let hidden = masked && x.at(n, c, 0, 0) <= 0.0;
                                want[n * inputs + c] = if hidden { 0.0 } else { sum.sum() };
                            }
                        }
                        let got = load(&x_map, count, &dx);
                        assert_rounded(&format!("dx {what}"), &got, &want, outputs, integers);
                    }
                }
            }
        }
    }
}

/// A linear layer's weights in their strips, a mark where there are none.
fn in_strips(w: &[f32], inputs: usize) -> Vec<f32> {
    let strips = linear::strips(w.len() / inputs, inputs);
    let mut placed = vec![MARK; strips.len()];
    strips.place(w, &mut placed);
    placed
}

const MARK: f32 = 1234.5;

/// The rows, and a check that nothing was written beyond the last column.
fn rows_of(w: &[f32], outputs: usize, inputs: usize) -> Vec<f32> {
    let strips = linear::strips(outputs, inputs);
    for row in 0..outputs {
        for beyond in inputs..inputs.next_multiple_of(strips.width) {
            assert_eq!(w[strips.at(row, beyond)], MARK, "what lies beyond the columns was written");
        }
    }
    strips.collect(w)
}

#[test]
fn changes_of_layout_lose_nothing() {
    let mut ctx = Context::new(Isa::all()[0], 2);
    for (channels, splits) in [(6, 2), (5, 1), (9, 3)] {
        let map = MapLayout { channels, splits, height: 3, width: 2 };
        let count = 35;
        let x = Map::random(map, count, true, &mut Random(1));
        let features = flat(x.picture());
        let mut rows = vec![0.0; room(&features, count)];
        convert::flatten(&mut ctx, &map, 2, &x.data, &mut rows);
        let flattened: Vec<f64> = load(&features, count, &rows).into_iter().map(f64::from).collect();
        assert_eq!(flattened, x.values);
        for relu in [false, true] {
            let mut back = vec![0.0; room(&map, count)];
            let mask = relu.then_some(&x.data[..]);
            convert::unflatten(&mut ctx, &map, 2, &rows, mask, &mut back);
            let want: Vec<f32> = x.values.iter().map(|v| if relu { v.max(0.0) } else { *v } as f32).collect();
            assert_eq!(load(&map, count, &back), want);
        }
        let len = 2 * map.block_len();
        let (mut wide, mut back) = (vec![0.0; 2 * len], vec![0.0; room(&map, count)]);
        convert::widen_map(&mut ctx, &x.data[..len], &mut wide);
        convert::round_map(&mut ctx, &wide, &mut back[..len]);
        assert_eq!(pairs(&back), pairs(&x.data));
        let values: Vec<f32> = x.values.iter().map(|v| *v as f32).collect();
        let mut from_rows = vec![0.0; room(&features, count)];
        convert::from_rows(&mut ctx, features.channels, count, &values, &mut from_rows);
        assert_eq!(pairs(&from_rows), pairs(&rows));
    }
}
