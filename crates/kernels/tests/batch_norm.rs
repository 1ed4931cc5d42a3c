//! Batch normalization kernels against their definitions in f64, on every instruction set.

mod common;

use alexnet_kernels::batch_norm::{self, Input, Rows};
use alexnet_kernels::{Context, Isa};
use common::{Random, assert_close};

#[test]
fn statistics_values_and_gradients() {
    // Channels around a vector, pictures that do not fill their block, one row, several units of rows.
    for (channels, block, positions, blocks) in [
        (1, 1, 1, 1),
        (3, 2, 5, 1),
        (15, 4, 1, 2),
        (16, 4, 9, 1),
        (17, 32, 9, 2),
        (48, 8, 40, 1),
        (100, 3, 7, 3),
    ] {
        let shape = Rows { channels, block, positions };
        let rows = blocks * block * positions;
        let picture = |row: usize| row / (block * positions) * block + row % block;
        let mut random = Random(channels as u64);
        let x: Vec<f32> = random.reals(rows * channels).iter().map(|v| 3.0 * v + 5.0).collect();
        let dy = random.reals(rows * channels);
        let (gamma, beta) = (random.reals(channels), random.reals(channels));
        // Every third picture has no part, but the first always has.
        let weights: Vec<f32> = (0..blocks * block).map(|n| if n % 3 == 2 { 0.0 } else { 1.0 }).collect();
        let counted: Vec<usize> = (0..rows).filter(|&r| weights[picture(r)] > 0.0).collect();
        let count = counted.len() as f64;
        let at = |r: usize, c: usize| f64::from(x[r * channels + c]);
        let mean: Vec<f64> =
            (0..channels).map(|c| counted.iter().map(|&r| at(r, c)).sum::<f64>() / count).collect();
        let variance: Vec<f64> = (0..channels)
            .map(|c| counted.iter().map(|&r| (at(r, c) - mean[c]).powi(2)).sum::<f64>() / count)
            .collect();
        let inverse: Vec<f64> = variance.iter().map(|v| 1.0 / (v + 0.1).sqrt()).collect();
        let normalized = |r: usize, c: usize| (at(r, c) - mean[c]) * inverse[c];
        let sum = |c: usize, f: &dyn Fn(usize) -> f64| -> f64 {
            counted.iter().map(|&r| f64::from(dy[r * channels + c]) * f(r)).sum()
        };
        let dbeta: Vec<f64> = (0..channels).map(|c| sum(c, &|_| 1.0)).collect();
        let dgamma: Vec<f64> = (0..channels).map(|c| sum(c, &|r| normalized(r, c))).collect();
        let each = |f: &dyn Fn(usize, usize) -> f64| -> Vec<f64> {
            (0..rows * channels).map(|i| f(i / channels, i % channels)).collect()
        };
        let y = each(&|r, c| f64::from(gamma[c]) * normalized(r, c) + f64::from(beta[c]));
        let dx = each(&|r, c| {
            if weights[picture(r)] == 0.0 {
                return 0.0;
            }
            let share = (dbeta[c] + normalized(r, c) * dgamma[c]) / count;
            f64::from(gamma[c]) * inverse[c] * (f64::from(dy[r * channels + c]) - share)
        });
        let single = |v: &[f64]| v.iter().map(|&v| v as f32).collect::<Vec<f32>>();
        for isa in Isa::all() {
            let mut ctx = Context::new(isa, 2);
            let what = format!("{isa:?} {shape:?}");
            let mut partials = vec![f32::NAN; shape.partials_len(x.len())];
            let (mut m, mut v) = (vec![f32::NAN; channels], vec![f32::NAN; channels]);
            let weight = batch_norm::statistics(&mut ctx, shape, &x, &weights, &mut partials, &mut m, &mut v);
            assert_eq!(weight, count, "{what}");
            assert_close(&what, &m, &mean, 5e-6);
            assert_close(&what, &v, &variance, 1e-5);
            let inv = single(&inverse);
            let factor: Vec<f32> = gamma.iter().zip(&inv).map(|(g, i)| g * i).collect();
            let mut out = vec![f32::NAN; x.len()];
            batch_norm::apply(&mut ctx, shape, &x, &m, &factor, &beta, &mut out);
            assert_close(&what, &out, &y, 1e-5);
            let (mut dg, mut db) = (vec![f32::NAN; channels], vec![f32::NAN; channels]);
            batch_norm::backward_weight(
                &mut ctx,
                shape,
                &x,
                &dy,
                &weights,
                &m,
                &inv,
                &mut partials,
                &mut dg,
                &mut db,
            );
            assert_close(&what, &dg, &dgamma, 1e-3);
            assert_close(&what, &db, &dbeta, 1e-3);
            let input = Input { mean: &m, inverse: &inv, gamma: &gamma, dgamma: &dg, dbeta: &db, count };
            for relu in [false, true] {
                let mut out = vec![f32::NAN; x.len()];
                batch_norm::backward_input(&mut ctx, shape, &x, &dy, &weights, input, relu, &mut out);
                let want: Vec<f64> =
                    dx.iter().zip(&x).map(|(d, x)| if relu && *x <= 0.0 { 0.0 } else { *d }).collect();
                assert_close(&what, &out, &want, 2e-5);
            }
        }
    }
}
