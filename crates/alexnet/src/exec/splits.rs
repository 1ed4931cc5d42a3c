//! Into how many parts that lie apart the channels of each map are cut in bf16 layouts: a map that a grouped convolution
//! writes or reads is split at its groups, and stages that go position by position have the same splits on both sides.

use crate::exec::plan::{Form, Kind, Plan};
use crate::net::{self, Network, Op, PoolKind};

/// The splits of every map; 1 for flat ones.
///
/// # Errors
/// If a map has channels that do not fill its splits.
pub(super) fn of(net: &Network, plan: &Plan) -> Result<Vec<usize>, String> {
    let groups = |stage: usize| match plan.stages.get(stage) {
        Some(stage) if matches!(stage.kind, Kind::Conv { .. }) => match &net.layers[stage.layers.start].op {
            Op::Conv(conv) => conv.groups,
            _ => 1,
        },
        _ => 1,
    };
    let count = plan.maps.len();
    let mut splits: Vec<usize> =
        (0..count).map(|i| lcm(groups(i), if i > 0 { groups(i - 1) } else { 1 })).collect();
    // Splits spread along the stages that keep them, both ways; at most once over each.
    for _ in 0..count {
        for (i, stage) in plan.stages.iter().enumerate() {
            let both = lcm(splits[i], splits[i + 1]);
            let odd = !(plan.maps[i].shape.c / both).is_multiple_of(2);
            let keeps = match stage.kind {
                Kind::Conv { .. } | Kind::Linear { .. } | Kind::Flatten => false,
                // Planned only where no map is cut within a pair.
                Kind::LrnPool => false,
                // Max pooling takes pairs from one layout to another, if a pair of one is a pair of the other.
                Kind::Pool => both > 1 && (odd || pools_average(net, plan, i)),
                Kind::Activation | Kind::Lrn | Kind::SpatialLrn | Kind::Dropout | Kind::BatchNorm => true,
            };
            if keeps {
                (splits[i], splits[i + 1]) = (both, both);
            }
        }
    }
    for (map, &splits) in plan.maps.iter().zip(&splits) {
        if map.form != Form::Flat && !map.shape.c.is_multiple_of(splits) {
            return Err(format!(
                "a map of {} cannot be cut into {splits} equal parts for the groups around it",
                map.shape
            ));
        }
    }
    Ok(splits)
}

/// A number that the splits of every map divide.
pub(super) fn all(net: &Network) -> usize {
    let groups = net.layers.iter().map(|layer| if let Op::Conv(conv) = &layer.op { conv.groups } else { 1 });
    groups.fold(1, lcm)
}

fn pools_average(net: &Network, plan: &Plan, stage: usize) -> bool {
    let layer = plan.stages[stage].layers.start;
    matches!(&net.layers[layer].op, Op::Pool(net::Pool { kind: PoolKind::Average, .. }))
}

fn lcm(a: usize, b: usize) -> usize {
    let (mut x, mut y) = (a, b);
    while y > 0 {
        (x, y) = (y, x % y);
    }
    a / x * b
}
