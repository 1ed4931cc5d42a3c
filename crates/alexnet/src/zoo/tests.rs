use super::*;

#[test]
fn totals_are_those_of_the_sources() {
    for (name, params, macs) in [
        ("alexnet-2012", 60_965_224, 724_406_816),
        ("alexnet-2012-code", 60_965_224, 724_406_816),
        ("alexnet-2012-half", 59_798_312, 391_514_384),
        ("alexnet-2014", 61_100_840, 714_188_480),
        ("caffe-alexnet", 60_965_224, 724_406_816),
        ("caffenet", 60_965_224, 724_406_816),
        ("torchvision", 61_100_840, 714_188_480),
        ("zfnet", 62_357_608, 1_168_032_896),
        // Batch normalizations have 2·(96 + 256 + 384 + 384 + 256) parameters.
        ("alexnet-bn", 60_965_224 + 2_752, 724_406_816),
    ] {
        let net = by_name(name, IMAGENET_CLASSES).unwrap();
        assert_eq!((net.params().unwrap(), net.macs().unwrap()), (params, macs), "{name}");
    }
}

/// Parameters and multiply-adds of the eight layers that have any, by the sources' tables.
#[test]
fn layers_are_those_of_the_sources() {
    let two_towers = [
        (34_944, 105_415_200),
        (307_456, 223_948_800),
        (885_120, 149_520_384),
        (663_936, 112_140_288),
        (442_624, 74_760_192),
        (37_752_832, 37_748_736),
        (16_781_312, 16_777_216),
        (4_097_000, 4_096_000),
    ];
    let one_tower = [
        (23_296, 70_276_800),
        (307_392, 223_948_800),
        (663_936, 112_140_288),
        (884_992, 149_520_384),
        (590_080, 99_680_256),
        (37_752_832, 37_748_736),
        (16_781_312, 16_777_216),
        (4_097_000, 4_096_000),
    ];
    for (name, expected) in [
        ("alexnet-2012", two_towers),
        ("alexnet-2012-code", two_towers),
        ("caffenet", two_towers),
        ("alexnet-2014", one_tower),
        ("torchvision", one_tower),
    ] {
        let net = by_name(name, IMAGENET_CLASSES).unwrap();
        let found: Vec<_> =
            net.trace().unwrap().iter().filter(|t| t.params() > 0).map(|t| (t.params(), t.macs)).collect();
        assert_eq!(found, expected, "{name}");
    }
}

#[test]
fn maps_are_55_27_13_and_6_pixels() {
    for net in all().iter().filter(|n| n.name != "zfnet" && n.name != "alexnet-mini") {
        let size = |name: &str| {
            let trace = net.trace().unwrap();
            trace.iter().find(|t| t.layer.name == name).unwrap().output.h
        };
        let sizes =
            [size("conv1"), size("pool1"), size("conv2"), size("pool2"), size("conv5"), size("pool5")];
        assert_eq!(sizes, [55, 27, 27, 13, 13, 6], "{}", net.name);
    }
    let zf = zfnet(IMAGENET_CLASSES);
    let maps: Vec<usize> = zf.trace().unwrap().iter().map(|t| t.output.h).collect();
    assert_eq!(maps[..8], [110, 110, 55, 55, 26, 26, 13, 13]);
}

/// The paper says 650,000 neurons: the outputs of all convolutions and fully connected layers.
#[test]
fn neurons_of_2012() {
    let net = alexnet_2012(IMAGENET_CLASSES);
    let neurons: usize = net.trace().unwrap().iter().filter(|t| t.params() > 0).map(|t| t.output.len()).sum();
    assert_eq!(neurons, 659_272);
}

#[test]
fn normalization_constants() {
    let alpha = |net: &Network, name: &str| match &net.layers[net.position(name).unwrap()].op {
        Op::Lrn(l) => (l.effective_alpha(), l.k, l.towers),
        Op::SpatialLrn(l) => (l.effective_alpha(), l.k, 1),
        other => panic!("{name} is {}", other.kind()),
    };
    assert_eq!(alpha(&alexnet_2012(10), "norm1"), (1e-4, 2.0, 2));
    assert_eq!(alpha(&alexnet_2012_code(10), "norm2"), (1e-4 / 5.0, 2.0, 2));
    assert_eq!(alpha(&alexnet_2012_code(10), "cnorm2"), (1e-3 / 25.0, 1.0, 1));
    assert_eq!(alpha(&caffe_alexnet(10), "norm2"), (1e-4 / 5.0, 1.0, 1));
}

#[test]
fn mini_is_small() {
    let net = alexnet_mini(10);
    assert!(net.macs().unwrap() <= 15_000_000, "{}", net.macs().unwrap());
    assert_eq!(net.classes(), 10);
}

#[test]
fn every_name_is_its_network_s_and_classes_are_free() {
    for (net, name) in all().iter().zip(names()) {
        assert_eq!(net.name, name);
        assert_eq!(by_name(name, 7).unwrap().classes(), 7);
    }
    let error = by_name("cafenet", 10).unwrap_err().to_string();
    assert!(error.contains("did you mean caffenet?"), "{error}");
    assert!(by_name("resnet50", 10).unwrap_err().to_string().contains("zfnet"));
}

/// The networks of the pre-training runs, for the classes of ImageNet's releases of 2009 and 2011.
#[test]
fn totals_of_the_pretrained_networks() {
    for (name, classes, params) in [
        ("alexnet-2012-conv6", 10_184, 99_182_152),
        ("alexnet-2012-conv6-bottleneck", 21_843, 110_605_267),
        ("alexnet-2012-conv6", 1000, 60_965_224 + 590_080),
    ] {
        let net = by_name(name, classes).unwrap();
        assert_eq!(net.params().unwrap(), params, "{name}");
        let conv6 =
            net.trace().unwrap().iter().find(|t| t.layer.name == "conv6").map(|t| (t.params(), t.macs));
        assert_eq!(conv6, Some((590_080, 21_233_664)));
    }
    let default = |name: &str| all().iter().find(|n| n.name == name).unwrap().classes();
    assert_eq!(default("alexnet-2012-conv6"), 10_184);
    assert_eq!(default("alexnet-2012-conv6-bottleneck"), 21_843);
}
