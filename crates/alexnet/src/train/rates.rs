//! From recipe and moment to one rate a parameter tensor: base × schedule × warm-up × the layer's multiplier.

use super::recipe::{LayerRates, Recipe};
use super::schedule::{Moment, PlateauState, warm_up};
use crate::exec::contract::{Params, Rate, Role};
use crate::net::{Layer, Network, Op};

/// The multipliers of weights and of biases of a layer at some epoch.
fn multipliers(layer: Option<&LayerRates>, epoch: f64) -> (f64, f64) {
    let Some(layer) = layer else { return (1.0, 1.0) };
    let (lr, bias) = match layer.changes.iter().rev().find(|c| c.from_epoch <= epoch) {
        Some(change) => (change.lr, change.bias_lr),
        None => (layer.lr, layer.bias_lr),
    };
    (lr, bias.unwrap_or(lr))
}

/// The rate of weights, before the layers' multipliers.
pub fn base(recipe: &Recipe, at: Moment, plateau: &PlateauState) -> f64 {
    recipe.lr * recipe.schedule.factor(at, plateau) * warm(recipe, at)
}

/// The factor of the warm-up, whichever unit the recipe gives it in.
fn warm(recipe: &Recipe, at: Moment) -> f64 {
    let steps = match recipe.warmup_steps {
        Some(steps) => steps as f64,
        None => recipe.warmup_epochs * at.steps_per_epoch as f64,
    };
    warm_up(steps, recipe.warmup_from, at)
}

/// One rate for each tensor of `params`, in their order.
pub fn rates(
    recipe: &Recipe,
    net: &Network,
    params: &Params,
    at: Moment,
    plateau: &PlateauState,
) -> Vec<Rate> {
    let weights = base(recipe, at, plateau);
    let biases = recipe.bias.lr
        * match &recipe.bias.schedule {
            Some(own) => recipe.lr * own.factor(at, plateau) * warm(recipe, at),
            None => weights,
        };
    let rate = |param: &crate::exec::contract::Param| {
        let layer = recipe.layers.get(&net.layers[param.layer].name);
        let (weight_lr, bias_lr) = multipliers(layer, at.epoch());
        let decay = recipe.weight_decay * layer.map_or(1.0, |l| l.decay);
        match param.role {
            Role::Weight => Rate { lr: (weights * weight_lr) as f32, decay: decay as f32 },
            // Of a frozen layer, whatever the schedule says.
            Role::Statistic => {
                let learns = learns(recipe, &net.layers[param.layer], at);
                Rate { lr: f32::from(u8::from(learns)), decay: 0.0 }
            }
            Role::Bias => Rate { lr: (biases * bias_lr) as f32, decay: (decay * recipe.bias.decay) as f32 },
        }
    };
    params.0.iter().map(rate).collect()
}

/// The number of leading layers in which nothing learns at this moment: their backward pass, and that of the first
/// learning layer into its input, need not be planned. A rate that the schedule brings to zero does not count.
pub fn frozen_below(recipe: &Recipe, net: &Network, at: Moment) -> usize {
    net.layers.iter().position(|layer| learns(recipe, layer, at)).unwrap_or(net.layers.len())
}

/// Whether a layer has parameters that the recipe does not freeze at this moment.
fn learns(recipe: &Recipe, layer: &Layer, at: Moment) -> bool {
    let (weight, bias) = multipliers(recipe.layers.get(&layer.name), at.epoch());
    matches!(layer.op, Op::Conv(_) | Op::Linear(_) | Op::BatchNorm(_))
        && (weight > 0.0 || bias * recipe.bias.lr > 0.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::recipe::{Bias, RateChange, load};
    use crate::train::schedule::{Schedule, Unit};
    use crate::train::testing::small_net;

    fn moment(step: u64) -> Moment {
        Moment { step, steps_per_epoch: 10, epochs: 100 }
    }

    fn recipe() -> Recipe {
        let mut recipe = load("krizhevsky-2012").unwrap();
        recipe.schedule = Schedule::MultiStep { at: vec![25.0, 51.0], factor: 0.1, unit: Unit::Epochs };
        recipe.bias = Bias { lr: 2.0, decay: 0.0, schedule: Some(Schedule::Constant) };
        let change = |from_epoch, lr| RateChange { from_epoch, lr, bias_lr: None };
        let conv1 = LayerRates {
            lr: 1.0,
            bias_lr: None,
            decay: 2.0,
            changes: vec![change(67.0, 0.1), change(72.0, 0.0)],
        };
        recipe.layers.insert("conv1".into(), conv1);
        recipe
    }

    #[test]
    fn rates_of_run_145() {
        let (recipe, net) = (recipe(), small_net(3));
        let params = Params::zeros(&net).unwrap();
        let at = |epoch: u64| rates(&recipe, &net, &params, moment(10 * epoch), &PlateauState::default());
        // Tensors: conv1.weight, conv1.bias, fc1.weight, fc1.bias, ...
        for (epoch, conv1, conv1_bias, fc1, fc1_bias) in [
            (0, 0.01, 0.02, 0.01, 0.02),
            (25, 1e-3, 0.02, 1e-3, 0.02),
            (67, 1e-5, 2e-3, 1e-4, 0.02),
            (72, 0.0, 0.0, 1e-4, 0.02),
        ] {
            let got = at(epoch);
            for (i, expected) in [conv1, conv1_bias, fc1, fc1_bias].into_iter().enumerate() {
                assert!(
                    (got[i].lr - expected).abs() <= 1e-6 * expected,
                    "epoch {epoch} tensor {i}: {}",
                    got[i].lr
                );
            }
        }
        let decays: Vec<f32> = at(0).iter().map(|r| r.decay).collect();
        assert_eq!(decays, [1e-3, 0.0, 5e-4, 0.0, 5e-4, 0.0]);
    }

    #[test]
    fn statistics_are_held_where_the_recipe_freezes_their_layer_and_not_where_a_rate_is_zero() {
        let mut recipe = load("large-batch").unwrap();
        let net = crate::zoo::by_name("alexnet-bn", 5).unwrap();
        let params = Params::zeros(&net).unwrap();
        let frozen = LayerRates { lr: 0.0, bias_lr: None, decay: 1.0, changes: vec![] };
        recipe.layers.insert("norm1".into(), frozen);
        // The first step of a warm-up from nothing.
        (recipe.warmup_from, recipe.warmup_steps) = (0.0, Some(10));
        let got = rates(&recipe, &net, &params, moment(0), &PlateauState::default());
        for (param, rate) in params.0.iter().zip(got) {
            let held = param.name.starts_with("norm1.");
            match param.role {
                Role::Statistic => assert_eq!(rate.lr == 0.0, held, "{}", param.name),
                _ if held => assert_eq!(rate.lr, 0.0, "{}", param.name),
                _ => {}
            }
        }
    }

    #[test]
    fn leading_frozen_layers_are_counted_as_the_run_goes() {
        let (mut recipe, net) = (recipe(), small_net(3));
        assert_eq!(frozen_below(&recipe, &net, moment(0)), 0);
        // conv1, relu1 are below fc1.
        assert_eq!(frozen_below(&recipe, &net, moment(720)), 2);
        let frozen = LayerRates { lr: 0.0, bias_lr: None, decay: 1.0, changes: vec![] };
        for name in ["conv1", "fc1", "fc2"] {
            recipe.layers.insert(name.into(), frozen.clone());
        }
        assert_eq!(frozen_below(&recipe, &net, moment(0)), net.layers.len());
        recipe.layers.insert("conv1".into(), LayerRates { bias_lr: Some(1.0), ..frozen });
        assert_eq!(
            frozen_below(&recipe, &net, moment(0)),
            0,
            "a learning bias needs its layer's backward pass"
        );
    }

    #[test]
    fn built_in_finetune_freezes_the_lowest_convolutions() {
        let recipe = load("finetune").unwrap();
        let net = crate::zoo::by_name("torchvision", 5).unwrap();
        let first = frozen_below(&recipe, &net, moment(0));
        assert_eq!((first, net.layers[first].name.as_str()), (net.position("conv3").unwrap(), "conv3"));
    }
}
