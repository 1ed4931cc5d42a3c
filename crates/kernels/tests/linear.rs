//! Linear layers and updates against their definitions in f64, on every instruction set, at sizes around the tiles.

mod common;

use alexnet_kernels::linear::few::{self, Output, Plain};
use alexnet_kernels::linear::{self, Backward, Cut, PackedPictures, strips, transposed_row};
use alexnet_kernels::sgd::{self, Update};
use alexnet_kernels::strips::Strips;
use alexnet_kernels::{Context, Isa};
use common::{Random, assert_close};

/// In a layout; what it has beyond the matrix is zero, and must stay so for what is compared.
fn placed(place: &Strips, matrix: &[f32]) -> Vec<f32> {
    let mut to = vec![0.0; place.len()];
    place.place(matrix, &mut to);
    to
}

#[test]
fn forward_backward_and_update() {
    let sizes =
        [(1, 1, 1), (3, 5, 7), (16, 255, 97), (17, 256, 96), (33, 257, 130), (65, 515, 31), (128, 40, 300)];
    for (count, inputs, outputs) in sizes {
        for integers in [true, false] {
            let mut random = Random((count * inputs) as u64);
            let mut draw = |len| if integers { random.integers(len) } else { random.reals(len) };
            let (x, w, bias) = (draw(count * inputs), draw(outputs * inputs), draw(outputs));
            let (dy, v) = (draw(count * outputs), draw(outputs * inputs));
            let (mut y, mut dx, mut dw, mut db) = (
                vec![0.0f64; count * outputs],
                vec![0.0f64; count * inputs],
                vec![0.0f64; outputs * inputs],
                vec![0.0f64; outputs],
            );
            for n in 0..count {
                for o in 0..outputs {
                    y[n * outputs + o] = f64::from(bias[o]);
                    db[o] += f64::from(dy[n * outputs + o]);
                    for i in 0..inputs {
                        let (x, w, g) = (x[n * inputs + i], w[o * inputs + i], dy[n * outputs + o]);
                        y[n * outputs + o] += f64::from(x) * f64::from(w);
                        dx[n * inputs + i] += f64::from(g) * f64::from(w);
                        dw[o * inputs + i] += f64::from(g) * f64::from(x);
                    }
                }
            }
            // Powers of two keep the integer case exact.
            let update = Update { lr: 0.25, decay: 0.5, momentum: 0.5 };
            let new_v: Vec<f64> = (0..w.len())
                .map(|i| 0.5 * f64::from(v[i]) - 0.125 * f64::from(w[i]) - 0.25 * dw[i])
                .collect();
            let new_w: Vec<f64> = (0..w.len()).map(|i| f64::from(w[i]) + new_v[i]).collect();
            let tolerance = |len: usize| if integers { 0.0 } else { 1e-5 * (len as f64).sqrt() };
            for isa in Isa::all() {
                let what = format!("{isa:?} {count} {inputs} {outputs}");
                let mut ctx = Context::new(isa, 2);
                // Room for more pictures than there are.
                let mut packed = PackedPictures::new(isa, count + 5, inputs);
                let plain = Plain::new(outputs, &w);
                let places = [Strips::whole(outputs, inputs), strips(outputs, inputs)];
                for relu in [false, true] {
                    let want: Vec<f64> = y.iter().map(|y| if relu { y.max(0.0) } else { *y }).collect();
                    let mut got = vec![f32::NAN; y.len()];
                    for place in places {
                        got.fill(f32::NAN);
                        let w = placed(&place, &w);
                        linear::forward(&mut ctx, place, count, &x, &mut packed, &w, &bias, relu, &mut got);
                        assert_close(&what, &got, &want, tolerance(inputs + 1));
                    }
                    got.fill(f32::NAN);
                    few::forward(&mut ctx, count, &x, &plain, &bias, relu, Output::Rows(&mut got));
                    assert_close(&what, &got, &want, tolerance(inputs + 1));
                }
                let row = transposed_row(count);
                let mut dy_t = vec![f32::NAN; outputs * row];
                linear::transpose(&mut ctx, count, &dy, row, &mut dy_t);
                let mut got = vec![f32::NAN; outputs];
                linear::bias_gradient(&dy_t, row, count, &mut got);
                assert_close(&what, &got, &db, tolerance(count));
                let cut = Cut::new(isa, inputs);
                for (place, (masked, lr)) in places
                    .into_iter()
                    .flat_map(|place| [(false, 0.25), (true, 0.25), (true, 0.0)].map(|case| (place, case)))
                {
                    let (old_w, old_v) = (placed(&place, &w), placed(&place, &v));
                    let (mut w2, mut v2, mut got) = (old_w.clone(), old_v.clone(), vec![f32::NAN; x.len()]);
                    let pass = Backward {
                        dx: Some(&mut got),
                        relu: masked.then_some(&x[..]),
                        w: &mut w2,
                        v: &mut v2,
                        update: Update { lr, ..update },
                    };
                    assert!(linear::backward(&mut ctx, &cut, place, count, &x, &dy_t, pass, false));
                    let want: Vec<f64> =
                        dx.iter().zip(&x).map(|(d, x)| if masked && *x <= 0.0 { 0.0 } else { *d }).collect();
                    assert_close(&what, &got, &want, tolerance(outputs));
                    if lr == 0.0 {
                        assert!(w2 == old_w && v2 == old_v);
                        continue;
                    }
                    assert_close(&what, &place.collect(&w2), &new_w, tolerance(count));
                    assert_close(&what, &place.collect(&v2), &new_v, tolerance(count));
                    // Without the input gradient, and the whole weight gradient instead of the update.
                    let (mut w2, mut v2) = (old_w.clone(), old_v);
                    let pass = Backward { dx: None, relu: None, w: &mut w2, v: &mut v2, update };
                    assert!(linear::backward(&mut ctx, &cut, place, count, &x, &dy_t, pass, true));
                    assert!(w2 == old_w);
                    assert_close(&what, &place.collect(&v2), &dw, tolerance(count));
                }
            }
        }
    }
}

#[test]
fn a_weight_that_is_not_finite_is_noticed() {
    for isa in Isa::all() {
        let mut ctx = Context::new(isa, 2);
        let update = Update { lr: 1.0, decay: 0.0, momentum: 0.9 };
        for bad in [f32::NAN, f32::INFINITY] {
            for at in [0, 17, 40_000] {
                let (mut g, mut w, mut v) = (vec![0.0; 40_001], vec![1.0; 40_001], vec![0.0; 40_001]);
                assert!(sgd::update(&mut ctx, update, &g, &mut w, &mut v));
                g[at] = bad;
                assert!(!sgd::update(&mut ctx, update, &g, &mut w, &mut v), "{isa:?} {bad} {at}");
            }
        }
        let (x, dy) = ([1.0, 2.0], [f32::NAN]);
        let (mut w, mut v) = ([1.0, 1.0], [0.0, 0.0]);
        let pass = Backward { dx: None, relu: None, w: &mut w, v: &mut v, update };
        let mut dy_t = vec![0.0; transposed_row(1)];
        linear::transpose(&mut ctx, 1, &dy, transposed_row(1), &mut dy_t);
        assert!(!linear::backward(
            &mut ctx,
            &Cut::new(isa, 2),
            Strips::whole(1, 2),
            1,
            &x,
            &dy_t,
            pass,
            false
        ));
    }
}
