//! The kernels that multiply in high and low parts of bf16 against their definitions in f64, on every engine (AMX emulated
//! where the machine lacks it), at sizes around their tiles: within 1e-5·√K, as f32's own kernels, and exactly on small
//! integers.

mod common;
mod engines;

use alexnet_kernels::Context;
use alexnet_kernels::bf16::Engine;
use alexnet_kernels::conv::{Axis, Epilogue, Fold, Geometry};
use alexnet_kernels::linear::{Backward, bias_gradient, transpose};
use alexnet_kernels::sgd::Update;
use alexnet_kernels::strips::Strips;
use alexnet_kernels::threefold::conv::{self, Packed};
use alexnet_kernels::threefold::weight::{WeightPlan, backward_weight};
use alexnet_kernels::threefold::{linear, split};
use common::convolution::each_product;
use common::{Random, assert_close};
use engines::engines;

/// What a sum of `terms` products of values up to 1 may be off by.
fn tolerance(terms: usize, integers: bool) -> f64 {
    if integers { 0.0 } else { 1e-5 * (terms as f64).sqrt() }
}

fn check_conv(engine: Engine, g: &Geometry, fold: Fold, count: usize, integers: bool, seed: u64) {
    let what = format!("{} {g:?} {count}", engine.name());
    let mut random = Random(seed);
    let mut draw = |len| if integers { random.integers(len) } else { random.reals(len) };
    let blocks = count.div_ceil(g.block);
    let (x, dy) = (draw(g.input_len(blocks)), draw(g.output_len(blocks)));
    let w = draw(g.k * (g.c / g.groups / fold.fold) * g.rows.kernel * fold.kernel);
    let bias = draw(g.k);
    let mut ctx = Context::new(engine.isa(), 2);

    let (mut want_y, mut want_dx) = (vec![0.0f64; dy.len()], vec![0.0f64; x.len()]);
    let (mut want_dw, mut want_db) = (vec![0.0f64; w.len()], vec![0.0f64; bias.len()]);
    let (mut y_there, mut x_there) = (vec![false; dy.len()], vec![false; x.len()]);
    each_product(g, fold, count, |xi, wi, yi, k| {
        if !y_there[yi] {
            y_there[yi] = true;
            want_y[yi] += f64::from(bias[k]);
            want_db[k] += f64::from(dy[yi]);
        }
        x_there[xi] = true;
        want_y[yi] += f64::from(x[xi]) * f64::from(w[wi]);
        want_dx[xi] += f64::from(dy[yi]) * f64::from(w[wi]);
        want_dw[wi] += f64::from(x[xi]) * f64::from(dy[yi]);
    });
    // What belongs to no picture, or that no window touches, is not compared.
    let only = |there: &[bool], values: &[f32]| -> Vec<f32> {
        values.iter().zip(there).map(|(v, there)| if *there { *v } else { 0.0 }).collect()
    };
    let taps = g.rows.kernel * g.columns.kernel;

    let mut packed = Packed::for_forward(g, fold);
    conv::pack(&mut ctx, &w, &mut packed);
    let mut parts = vec![f32::NAN; packed.rows().len(blocks)];
    split(&mut ctx, engine, packed.rows(), blocks, &x, &mut parts);
    for relu in [false, true] {
        let mut y = vec![f32::NAN; dy.len()];
        let epilogue = if relu { Epilogue::BiasRelu } else { Epilogue::Bias };
        conv::forward(&mut ctx, engine, blocks, &parts, &packed, &bias, epilogue, &mut y);
        let want: Vec<f64> = want_y.iter().map(|v| if relu { v.max(0.0) } else { *v }).collect();
        let bound = tolerance(taps * g.c / g.groups + 1, integers);
        assert_close(&format!("forward {what}"), &only(&y_there, &y), &want, bound);
    }

    if fold.fold == 1 && Packed::fits_backward(g) {
        let mut packed = Packed::for_backward(g);
        conv::pack(&mut ctx, &w, &mut packed);
        let mut parts = vec![f32::NAN; packed.rows().len(blocks)];
        split(&mut ctx, engine, packed.rows(), blocks, &dy, &mut parts);
        for masked in [false, true] {
            let mut dx = vec![f32::NAN; x.len()];
            conv::backward_input(&mut ctx, engine, blocks, &parts, &packed, masked.then_some(&x), &mut dx);
            let want: Vec<f64> =
                want_dx.iter().zip(&x).map(|(d, x)| if masked && *x <= 0.0 { 0.0 } else { *d }).collect();
            let bound = tolerance(taps * g.k / g.groups, integers);
            assert_close(&format!("backward_input {what}"), &only(&x_there, &dx), &want, bound);
        }
    }

    // The plan has room for another block.
    let mut plan = WeightPlan::new(g, fold, blocks + 1);
    let [x_len, dy_len] = plan.split_lens(blocks);
    let (mut x_room, mut dy_room) = (vec![f32::NAN; x_len], vec![f32::NAN; dy_len]);
    let (mut dw, mut db) = (vec![f32::NAN; w.len()], vec![f32::NAN; bias.len()]);
    let rooms = [&mut x_room[..], &mut dy_room[..]];
    backward_weight(&mut ctx, engine, &mut plan, count, &x, &dy, rooms, &mut dw, &mut db);
    let bound = tolerance(count * g.rows.output * g.columns.output, integers);
    assert_close(&format!("backward_weight {what}"), &dw, &want_dw, bound);
    assert_close(&format!("bias gradient {what}"), &db, &want_db, bound);
}

fn axis(input: usize, kernel: usize, stride: usize, pad: usize, output: usize) -> Axis {
    Axis { input, output, kernel, stride, pad }
}

fn same(size: usize, kernel: usize) -> Axis {
    axis(size, kernel, 1, kernel / 2, size)
}

#[test]
fn convolutions_at_the_sizes_around_tiles() {
    let geometry = |block, c, k, groups, rows, columns| Geometry { block, c, k, groups, rows, columns };
    let shapes = [
        // One tile or two of pictures, of source and of target channels, between groups and not.
        geometry(32, 12, 20, 1, same(5, 3), same(4, 3)),
        geometry(16, 34, 66, 2, same(4, 3), same(3, 3)),
        geometry(17, 48, 33, 1, same(3, 3), same(4, 3)),
        geometry(1, 96, 32, 2, same(3, 5), same(6, 5)),
        geometry(32, 31, 15, 1, same(2, 1), same(3, 1)),
        // A window larger than the map, one without padding, and more rows than a band has.
        geometry(2, 2, 3, 1, same(2, 5), same(1, 5)),
        geometry(8, 16, 16, 1, axis(6, 3, 1, 0, 4), axis(5, 2, 1, 0, 4)),
        geometry(1, 2, 2, 1, same(70, 3), same(2, 3)),
        // Strides, with windows that overhang.
        geometry(8, 5, 7, 1, axis(8, 5, 2, 0, 3), axis(9, 5, 2, 0, 3)),
        geometry(4, 3, 9, 1, axis(20, 11, 4, 0, 4), axis(20, 11, 4, 2, 5)),
        // More weights than a chunk holds.
        geometry(16, 300, 300, 1, same(2, 3), same(1, 3)),
    ];
    for engine in engines() {
        for (i, g) in shapes.iter().enumerate() {
            for (count, integers) in
                [(1, true), (g.block, false), (g.block + 1, true), (2 * g.block + 1, false)]
            {
                check_conv(engine, g, Fold::none(g.columns.kernel), count, integers, i as u64);
            }
        }
    }
}

#[test]
fn random_convolutions() {
    let mut random = Random(2012);
    for case in 0..30 {
        let groups = 1 + random.below(2);
        let mut axis = || {
            let (kernel, stride, input) = (1 + random.below(5), 1 + random.below(2), 1 + random.below(9));
            let pad = random.below(kernel);
            let output = ((input + pad).saturating_sub(kernel)).div_ceil(stride) + 1;
            axis(input, kernel, stride, pad, output.min((input + pad - 1) / stride + 1))
        };
        let (rows, columns) = (axis(), axis());
        let g = Geometry {
            block: [1, 3, 16, 32][random.below(4)],
            c: groups * (1 + random.below(40)),
            k: groups * (1 + random.below(70)),
            groups,
            rows,
            columns,
        };
        let count = 1 + random.below(2 * g.block);
        for engine in engines() {
            check_conv(engine, &g, Fold::none(g.columns.kernel), count, case % 3 == 0, case);
        }
    }
}

#[test]
fn folded_first_layers() {
    // An 11×11 kernel with stride 4 over 3 channels, four columns folded into 12 channels: 3 folded columns a window.
    let g = Geometry {
        block: 8,
        c: 12,
        k: 18,
        groups: 1,
        rows: axis(19, 11, 4, 0, 3),
        columns: axis(6, 3, 1, 0, 4),
    };
    for engine in engines() {
        for integers in [true, false] {
            check_conv(engine, &g, Fold { kernel: 11, fold: 4 }, 10, integers, 3);
        }
    }
}

#[test]
fn linear_layers() {
    let sizes =
        [(1, 1, 1), (3, 5, 7), (16, 255, 97), (17, 256, 96), (33, 257, 130), (65, 515, 31), (128, 40, 300)];
    for (count, inputs, outputs) in sizes {
        for integers in [true, false] {
            check_linear(count, inputs, outputs, integers);
        }
    }
    // Two turns of blocks, and more outputs than a unit has.
    check_linear(257, 33, 1100, true);
}

fn check_linear(count: usize, inputs: usize, outputs: usize, integers: bool) {
    let mut random = Random((count * inputs) as u64);
    let mut draw = |len| if integers { random.integers(len) } else { random.reals(len) };
    let (x, w, bias) = (draw(count * inputs), draw(outputs * inputs), draw(outputs));
    let (dy, v) = (draw(count * outputs), draw(outputs * inputs));
    let (mut y, mut dx) = (vec![0.0f64; count * outputs], vec![0.0f64; count * inputs]);
    let mut dw = vec![0.0f64; outputs * inputs];
    for (n, o) in (0..count).flat_map(|n| (0..outputs).map(move |o| (n, o))) {
        y[n * outputs + o] = f64::from(bias[o]);
        for i in 0..inputs {
            let [x, w, g] = [x[n * inputs + i], w[o * inputs + i], dy[n * outputs + o]].map(f64::from);
            y[n * outputs + o] += x * w;
            dx[n * inputs + i] += g * w;
            dw[o * inputs + i] += g * x;
        }
    }
    // Powers of two keep the integer case exact.
    let update = Update { lr: 0.25, decay: 0.5, momentum: 0.5 };
    let new_v: Vec<f64> =
        (0..w.len()).map(|i| 0.5 * f64::from(v[i]) - 0.125 * f64::from(w[i]) - 0.25 * dw[i]).collect();
    let new_w: Vec<f64> = (0..w.len()).map(|i| f64::from(w[i]) + new_v[i]).collect();
    let places = [Strips::whole(outputs, inputs), linear::strips(outputs, inputs)];
    for (engine, place) in engines().into_iter().flat_map(|engine| places.map(|place| (engine, place))) {
        let what = format!("{} {count} {inputs} {outputs} {}", engine.name(), place.width);
        let mut ctx = Context::new(engine.isa(), 2);
        let lie = |rows: &[f32]| {
            let mut to = vec![0.0; place.len()];
            for (i, value) in rows.iter().enumerate() {
                to[place.at(i / inputs, i % inputs)] = *value;
            }
            to
        };
        let rows = |lying: &[f32]| -> Vec<f32> {
            (0..outputs * inputs).map(|i| lying[place.at(i / inputs, i % inputs)]).collect()
        };
        let (w_there, v_there) = (lie(&w), lie(&v));

        let mut parts = vec![f32::NAN; linear::forward_parts_len(inputs, count)];
        for relu in [false, true] {
            let want: Vec<f64> = y.iter().map(|y| if relu { y.max(0.0) } else { *y }).collect();
            let mut got = vec![f32::NAN; y.len()];
            linear::forward(&mut ctx, engine, place, count, &x, &mut parts, &w_there, &bias, relu, &mut got);
            assert_close(&what, &got, &want, tolerance(inputs + 1, integers));
        }

        let (mut dy_t, mut db) = (vec![f32::NAN; dy.len()], vec![f32::NAN; outputs]);
        transpose(&mut ctx, count, &dy, count, &mut dy_t);
        bias_gradient(&dy_t, count, count, &mut db);
        let mut parts = vec![f32::NAN; linear::backward_parts_len(outputs, count)];
        for (masked, lr, whole) in
            [(false, 0.25, false), (true, 0.25, false), (true, 0.0, false), (true, 0.25, true)]
        {
            let (mut w2, mut v2, mut got) = (w_there.clone(), v_there.clone(), vec![f32::NAN; x.len()]);
            let pass = Backward {
                dx: Some(&mut got),
                relu: masked.then_some(&x[..]),
                w: &mut w2,
                v: &mut v2,
                update: Update { lr, ..update },
            };
            let finite =
                linear::backward(&mut ctx, engine, place, count, &x, &dy, &dy_t, &mut parts, pass, whole);
            assert!(finite, "{what}");
            let want: Vec<f64> =
                dx.iter().zip(&x).map(|(d, x)| if masked && *x <= 0.0 { 0.0 } else { *d }).collect();
            assert_close(&what, &got, &want, tolerance(outputs, integers));
            let bound = tolerance(count, integers);
            if lr == 0.0 {
                assert!(w2 == w_there && v2 == v_there, "{what}");
            } else if whole {
                assert!(w2 == w_there, "{what}");
                assert_close(&what, &rows(&v2), &dw, bound);
            } else {
                assert_close(&what, &rows(&w2), &new_w, bound);
                assert_close(&what, &rows(&v2), &new_v, bound);
            }
        }
    }
}

#[test]
fn a_weight_that_is_not_finite_is_noticed() {
    for engine in engines() {
        let mut ctx = Context::new(engine.isa(), 2);
        let (x, dy) = ([1.0, 2.0], [f32::NAN]);
        let (mut w, mut v) = ([1.0, 1.0], [0.0, 0.0]);
        let update = Update { lr: 1.0, decay: 0.0, momentum: 0.9 };
        let pass = Backward { dx: None, relu: None, w: &mut w, v: &mut v, update };
        let mut parts = vec![0.0; linear::backward_parts_len(1, 1)];
        let place = Strips::whole(1, 2);
        assert!(!linear::backward(&mut ctx, engine, place, 1, &x, &dy, &dy, &mut parts, pass, false));
    }
}
