//! Convolution kernels against the definition in f64, on every instruction set, at sizes around their tiles.

mod common;

use alexnet_kernels::conv::{self, Axis, Epilogue, Fold, Geometry, Method, Packed, WeightPlan};
use alexnet_kernels::{Context, Isa};
use common::convolution::each_product;
use common::{Random, assert_close};

fn check(isa: Isa, threads: usize, g: &Geometry, fold: Fold, count: usize, integers: bool, seed: u64) {
    let what = format!("{isa:?} {g:?} {count}");
    let mut random = Random(seed);
    let mut draw = |len| if integers { random.integers(len) } else { random.reals(len) };
    let blocks = count.div_ceil(g.block);
    let x = draw(g.input_len(blocks));
    let dy = draw(g.output_len(blocks));
    let w = draw(g.k * (g.c / g.groups / fold.fold) * g.rows.kernel * fold.kernel);
    let bias = draw(g.k);
    let mut ctx = Context::new(isa, threads);

    let mut want_y = vec![0.0f64; dy.len()];
    let mut want_dx = vec![0.0f64; x.len()];
    let mut want_dw = vec![0.0f64; w.len()];
    let mut want_db = vec![0.0f64; bias.len()];
    let mut written = vec![false; dy.len()];
    each_product(g, fold, count, |xi, wi, yi, k| {
        if !written[yi] {
            written[yi] = true;
            want_y[yi] += f64::from(bias[k]);
            want_db[k] += f64::from(dy[yi]);
        }
        want_y[yi] += f64::from(x[xi]) * f64::from(w[wi]);
        want_dx[xi] += f64::from(dy[yi]) * f64::from(w[wi]);
        want_dw[wi] += f64::from(x[xi]) * f64::from(dy[yi]);
    });
    let taps = g.rows.kernel * g.columns.kernel;

    // Canaries around the outputs: what belongs to no picture must stay.
    const CANARY: f32 = -12345.0;
    for method in [Method::Direct, Method::Winograd] {
        // Winograd's has quotients of three in it.
        let fits = g.fits_winograd() && fold.fold == 1 || g.fits_winograd_first();
        if method == Method::Winograd && (integers || !fits) {
            continue;
        }
        let what = format!("{what} {method:?}");
        // f32 within 1e-5·√K of the definition, K being the length of each sum.
        let tolerance = |len: usize| if integers { 0.0 } else { 1e-5 * (len as f64).sqrt() };
        let mut packed = Packed::for_forward(isa, g, fold, method);
        conv::pack_forward(&mut ctx, g, &w, &mut packed);
        for relu in [false, true] {
            let mut y = vec![CANARY; dy.len()];
            let epilogue = if relu { Epilogue::BiasRelu } else { Epilogue::Bias };
            conv::forward(&mut ctx, g, count, &x, &packed, &bias, epilogue, &mut y);
            let want: Vec<f64> = (0..y.len())
                .map(|i| match (written[i], relu) {
                    (false, _) => f64::from(CANARY),
                    (true, true) => want_y[i].max(0.0),
                    (true, false) => want_y[i],
                })
                .collect();
            assert_close(&format!("forward {what}"), &y, &want, tolerance(taps * g.c / g.groups + 1));
        }

        if fold.fold == 1 && (method == Method::Direct || g.fits_winograd()) {
            let mut packed = Packed::for_backward(isa, g, method);
            conv::pack_backward(&mut ctx, g, &w, &mut packed);
            for masked in [false, true] {
                let mut dx = vec![CANARY; x.len()];
                conv::backward_input(&mut ctx, g, count, &dy, &packed, masked.then_some(&x), &mut dx);
                let picture = |i: usize| {
                    let n = i / g.c % g.block;
                    i / (g.block * g.c * g.rows.input * g.columns.input) * g.block + n
                };
                let want: Vec<f64> = (0..dx.len())
                    .map(|i| match masked && x[i] <= 0.0 {
                        _ if picture(i) >= count => f64::from(CANARY),
                        true => 0.0,
                        false => want_dx[i],
                    })
                    .collect();
                assert_close(&format!("backward_input {what}"), &dx, &want, tolerance(taps * g.k / g.groups));
            }
        }

        let mut dw = vec![f32::NAN; w.len()];
        let mut db = vec![f32::NAN; bias.len()];
        conv::backward_weight(
            &mut ctx,
            g,
            &mut WeightPlan::new(isa, g, fold, method),
            count,
            &x,
            &dy,
            &mut dw,
            &mut db,
        );
        let sums = count * g.rows.output * g.columns.output;
        assert_close(&format!("backward_weight {what}"), &dw, &want_dw, tolerance(sums));
        assert_close(&format!("bias gradient {what}"), &db, &want_db, tolerance(sums));
    }
}

fn axis(input: usize, kernel: usize, stride: usize, pad: usize, output: usize) -> Axis {
    Axis { input, output, kernel, stride, pad }
}

#[test]
fn every_kind_of_geometry_exactly_on_integers() {
    let same = |n, kernel: usize| axis(n, kernel, 1, kernel / 2, n);
    let shapes = [
        // 3×3 on 13×13-like maps, groups, as conv3 to conv5.
        Geometry { block: 32, c: 12, k: 20, groups: 1, rows: same(5, 3), columns: same(4, 3) },
        // Blocks of one picture, whose tiles have positions as rows: with padding, strides, windows that all overhang.
        Geometry { block: 1, c: 16, k: 70, groups: 2, rows: same(4, 3), columns: same(13, 3) },
        Geometry {
            block: 1,
            c: 5,
            k: 40,
            groups: 1,
            rows: axis(9, 5, 2, 1, 4),
            columns: axis(35, 11, 4, 2, 8),
        },
        Geometry { block: 1, c: 3, k: 9, groups: 1, rows: axis(2, 5, 1, 2, 2), columns: axis(3, 5, 1, 2, 3) },
        Geometry { block: 32, c: 16, k: 32, groups: 2, rows: same(4, 3), columns: same(5, 3) },
        // 5×5 with two groups, channels that are no multiple of a vector.
        Geometry { block: 16, c: 6, k: 34, groups: 2, rows: same(6, 5), columns: same(7, 5) },
        // Stride 2, overhanging last window (ceil), as ZFNet's conv2.
        Geometry { block: 8, c: 5, k: 7, groups: 1, rows: axis(8, 5, 2, 0, 3), columns: axis(9, 5, 2, 0, 3) },
        // Stride 4, 11×11, overhang of three, not folded.
        Geometry {
            block: 4,
            c: 3,
            k: 9,
            groups: 1,
            rows: axis(20, 11, 4, 0, 4),
            columns: axis(20, 11, 4, 0, 4),
        },
        // 1×1 map and kernel; a kernel larger than the map.
        Geometry {
            block: 32,
            c: 3,
            k: 65,
            groups: 1,
            rows: axis(1, 1, 1, 0, 1),
            columns: axis(1, 1, 1, 0, 1),
        },
        Geometry { block: 2, c: 2, k: 3, groups: 1, rows: axis(2, 5, 1, 2, 2), columns: axis(1, 5, 1, 2, 1) },
        // More channels than a chunk of weights holds.
        Geometry {
            block: 32,
            c: 300,
            k: 70,
            groups: 1,
            rows: axis(2, 1, 1, 0, 2),
            columns: axis(1, 1, 1, 0, 1),
        },
        // Winograd's tiles: odd and even sizes, one output, groups, blocks of any size.
        Geometry { block: 32, c: 16, k: 32, groups: 1, rows: same(5, 3), columns: same(4, 3) },
        Geometry { block: 7, c: 64, k: 96, groups: 2, rows: same(4, 3), columns: same(7, 3) },
        Geometry { block: 1, c: 112, k: 80, groups: 1, rows: same(1, 3), columns: same(2, 3) },
        Geometry { block: 32, c: 48, k: 96, groups: 1, rows: same(5, 5), columns: same(4, 5) },
        Geometry { block: 9, c: 96, k: 224, groups: 2, rows: same(3, 5), columns: same(8, 5) },
    ];
    for isa in Isa::all() {
        for (i, g) in shapes.iter().enumerate() {
            for count in [1, g.block - g.block / 3, g.block, g.block + 1] {
                check(isa, 2, g, Fold::none(g.columns.kernel), count, true, i as u64);
                if g.fits_winograd() {
                    check(isa, 2, g, Fold::none(g.columns.kernel), count, false, i as u64);
                }
            }
        }
    }
}

#[test]
fn widths_around_the_tile_exactly_on_integers() {
    for isa in Isa::all() {
        let lanes = isa.lanes();
        for k in [
            1,
            lanes - 1,
            lanes,
            lanes + 1,
            2 * lanes,
            3 * lanes - 1,
            4 * lanes,
            4 * lanes + 1,
            5 * lanes,
            67,
        ] {
            for c in [1, 2, 5, 6, 7, 8, 9, 13] {
                let g = Geometry {
                    block: 9,
                    c,
                    k,
                    groups: 1,
                    rows: axis(3, 3, 1, 1, 3),
                    columns: axis(2, 2, 1, 0, 1),
                };
                check(isa, 1, &g, Fold::none(2), 11, true, (k * c) as u64);
            }
        }
    }
}

#[test]
fn folded_first_layer_equals_the_unfolded_kernel() {
    // An 11×11 kernel with stride 4 over 3 channels, four columns folded into 12 channels: 3 folded columns a window.
    let g = Geometry {
        block: 8,
        c: 12,
        k: 18,
        groups: 1,
        rows: axis(19, 11, 4, 0, 3),
        columns: axis(6, 3, 1, 0, 4),
    };
    for isa in Isa::all() {
        check(isa, 2, &g, Fold { kernel: 11, fold: 4 }, 10, true, 3);
    }
}

#[test]
fn folded_first_layers_within_rounding() {
    let mut random = Random(2012);
    for (case, block) in [8, 16, 32, 32].into_iter().enumerate() {
        // 11×11 with stride 4, and 5×5 with stride 2 over 6 channels; the last rows and columns may have no pixels.
        for (kernel, stride, channels) in [(11, 4, 3), (5, 2, 6)] {
            let (rows, columns) = (1 + random.below(9), 1 + random.below(9));
            let pad = random.below(stride);
            let height = (rows - 1) * stride + kernel - pad + random.below(2);
            let g = Geometry {
                block,
                c: channels * stride,
                k: 16 * (1 + random.below(6)),
                groups: 1,
                rows: axis(height, kernel, stride, pad, rows),
                columns: axis(columns + 2 + random.below(2), 3, 1, 0, columns),
            };
            assert!(g.fits_winograd_first());
            let count = 1 + random.below(2 * block);
            for isa in Isa::all() {
                check(isa, 2, &g, Fold { kernel, fold: stride }, count, false, case as u64);
            }
        }
    }
}

#[test]
fn random_shapes_within_rounding() {
    let mut random = Random(2012);
    for case in 0..40 {
        let groups = 1 + random.below(2);
        let mut axis = || {
            let (kernel, stride, input) = (1 + random.below(5), 1 + random.below(3), 1 + random.below(9));
            let pad = random.below(kernel);
            let output = ((input + pad).saturating_sub(kernel)).div_ceil(stride) + 1;
            axis(input, kernel, stride, pad, output.min((input + pad - 1) / stride + 1))
        };
        let (rows, columns) = (axis(), axis());
        let g = Geometry {
            block: [1, 3, 16, 32][random.below(4)],
            c: groups * (1 + random.below(24)),
            k: groups * (1 + random.below(40)),
            groups,
            rows,
            columns,
        };
        let count = 1 + random.below(2 * g.block);
        for isa in Isa::all() {
            check(isa, 2, &g, Fold::none(g.columns.kernel), count, false, case);
        }
    }
}

#[test]
fn random_widths_of_tiles_within_rounding() {
    let mut random = Random(1980);
    for case in 0..20 {
        let groups = 1 + random.below(2);
        let kernel = [3, 5][random.below(2)];
        let mut same = || {
            let size = 1 + random.below(9);
            axis(size, kernel, 1, kernel / 2, size)
        };
        let (rows, columns) = (same(), same());
        let mut channels = || groups * 16 * (1 + random.below(6));
        let g = Geometry { block: 32, c: channels(), k: channels(), groups, rows, columns };
        assert!(g.fits_winograd());
        let count = 1 + random.below(2 * g.block);
        for isa in Isa::all() {
            check(isa, 2, &g, Fold::none(kernel), count, false, case);
        }
    }
}

#[test]
fn threads_do_not_change_a_bit() {
    let g = Geometry {
        block: 32,
        c: 32,
        k: 64,
        groups: 2,
        rows: axis(7, 3, 1, 1, 7),
        columns: axis(6, 3, 1, 1, 6),
    };
    let fold = Fold::none(3);
    let mut random = Random(5);
    let (x, dy) = (random.reals(g.input_len(3)), random.reals(g.output_len(3)));
    let (w, bias) = (random.reals(64 * 16 * 9), random.reals(64));
    let methods = [Method::Direct, Method::Winograd];
    assert!(g.fits_winograd());
    for (isa, method) in Isa::all().into_iter().flat_map(|isa| methods.map(|method| (isa, method))) {
        let run = |threads| {
            let mut ctx = Context::new(isa, threads);
            let (mut forward, mut backward) =
                (Packed::for_forward(isa, &g, fold, method), Packed::for_backward(isa, &g, method));
            conv::pack_forward(&mut ctx, &g, &w, &mut forward);
            conv::pack_backward(&mut ctx, &g, &w, &mut backward);
            let (mut y, mut dx) = (vec![0.0; dy.len()], vec![0.0; x.len()]);
            let (mut dw, mut db) = (vec![0.0; w.len()], vec![0.0; 64]);
            conv::forward(&mut ctx, &g, 90, &x, &forward, &bias, Epilogue::BiasRelu, &mut y);
            conv::backward_input(&mut ctx, &g, 90, &dy, &backward, None, &mut dx);
            conv::backward_weight(
                &mut ctx,
                &g,
                &mut WeightPlan::new(isa, &g, fold, method),
                90,
                &x,
                &dy,
                &mut dw,
                &mut db,
            );
            (y, dx, dw, db)
        };
        let one = run(1);
        for threads in [2, 3, 4, 8] {
            assert!(run(threads) == one, "{isa:?} {method:?} {threads}");
        }
    }
}
