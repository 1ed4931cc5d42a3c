//! Points of a network on which the published forms differ, as keys of a recipe. A built-in recipe spells out those of
//! its source; another value makes a variant of the same network.

use crate::net::{Init, Loss, Network, Op, Ties};
use serde::{Deserialize, Serialize};

/// `[network]`: what is given replaces what the network has.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Choices {
    /// Whether the normalizations' α is divided by the number of elements of their window (the code of 2012, Caffe and
    /// PyTorch divide; the paper's formula does not).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lrn_alpha_divided: Option<bool>,
    /// Towers within which normalization across maps stays (2 in 2012, 1 in Caffe).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lrn_towers: Option<usize>,
    /// The deviation that the weights of conv3, conv4 and conv5 start with (0.01 in the paper, 0.03 in the code).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conv3_to_5_std: Option<f64>,
    /// What the biases start with that the paper starts at 1: conv2, conv4, conv5 and the hidden fully connected layers
    /// (0.1 in Caffe's AlexNet, where the loss stayed flat with 1).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ones_bias: Option<f64>,
    /// What the last layer's biases start with (−7 in 2014, for a logistic loss).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_bias: Option<f64>,
    /// Who receives the gradient of equal maxima (all of them in cuda-convnet, the first in Caffe and PyTorch).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool_ties: Option<Ties>,
    /// Whether dropout divides in training (Caffe, PyTorch) or multiplies at test time (2012).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dropout_inverted: Option<bool>,
    /// What is minimized (the paper of 2014 has logistic units, its configuration softmax).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss: Option<Loss>,
}

impl Choices {
    /// Whether nothing is given.
    pub fn is_empty(&self) -> bool {
        *self == Choices::default()
    }

    /// Makes the choices on a network.
    pub fn apply(&self, net: &mut Network) {
        let last = net.layers.len().saturating_sub(1);
        for (i, layer) in net.layers.iter_mut().enumerate() {
            let upper = ["conv3", "conv4", "conv5"].contains(&layer.name.as_str());
            let one = match layer.name.as_str() {
                "conv2" | "conv4" | "conv5" | "conv6" => true,
                "bottleneck" => false,
                _ => matches!(layer.op, Op::Linear(_)) && i != last,
            };
            let bias = if i == last { self.last_bias } else { self.ones_bias.filter(|_| one) };
            match &mut layer.op {
                Op::Conv(conv) => {
                    set(&mut conv.weight, self.conv3_to_5_std.filter(|_| upper).map(Init::Gaussian));
                    set(&mut conv.bias, bias.map(Init::Constant));
                }
                Op::Linear(linear) => set(&mut linear.bias, bias.map(Init::Constant)),
                Op::Lrn(lrn) => {
                    set(&mut lrn.alpha_div_n, self.lrn_alpha_divided);
                    set(&mut lrn.towers, self.lrn_towers);
                }
                Op::SpatialLrn(lrn) => set(&mut lrn.alpha_div_n, self.lrn_alpha_divided),
                Op::Pool(pool) => set(&mut pool.ties, self.pool_ties),
                Op::Dropout(dropout) => set(&mut dropout.inverted, self.dropout_inverted),
                Op::Activation(_) | Op::BatchNorm(_) => {}
            }
        }
        set(&mut net.loss, self.loss);
    }
}

fn set<T>(to: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *to = value;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::zoo;

    #[test]
    fn choices_make_the_other_form() {
        let paper = zoo::alexnet_2012(10);
        let mut net = paper.clone();
        Choices::default().apply(&mut net);
        assert_eq!(net, paper);
        let choices = Choices {
            lrn_alpha_divided: Some(true),
            lrn_towers: Some(1),
            conv3_to_5_std: Some(0.03),
            ones_bias: Some(0.1),
            last_bias: Some(-7.0),
            pool_ties: Some(Ties::First),
            dropout_inverted: Some(true),
            loss: Some(Loss::Logistic),
        };
        choices.apply(&mut net);
        let text = net.to_toml();
        let count = |part: &str| text.matches(part).count();
        assert_eq!(count("alpha_div_n = true"), 2, "{text}");
        assert_eq!((count("towers = 1"), count("gaussian = 0.03")), (2, 3), "{text}");
        // conv2, conv4, conv5, fc6, fc7.
        assert_eq!((count("constant = 0.1"), count("constant = -7.0"), count("constant = 1.0")), (5, 1, 0));
        assert_eq!((count("ties = \"first\""), count("inverted = true")), (3, 2), "{text}");
        assert!(text.contains("loss = \"logistic\""));
    }
}
