use super::*;
use crate::zoo;

#[test]
fn built_in_recipes_are_sound_and_survive_the_round_trip() {
    for name in names() {
        let recipe = load(name).unwrap();
        assert_eq!(recipe.name, name);
        assert_eq!(Recipe::from_toml(&recipe.to_toml(), "again").unwrap(), recipe, "{}", recipe.to_toml());
        recipe.apply(zoo::by_name(&recipe.net, 7).unwrap()).unwrap();
    }
}

/// What a published recipe must state, and that its keys for the network say what the network is.
#[test]
fn published_recipes_state_their_source_result_and_choices() {
    for name in names().filter(|name| !["finetune", "scratch-small", "mini"].contains(name)) {
        let recipe = load(name).unwrap();
        assert!(!recipe.source.is_empty() && !recipe.deviations.is_empty(), "{name}");
        let expected = recipe.expected.as_ref().unwrap_or_else(|| panic!("{name} expects nothing"));
        assert!(expected.top1_error.is_some_and(|e| (0.3..0.7).contains(&e)), "{name}");
        let data = recipe.data.as_ref().unwrap();
        let net = zoo::by_name(&recipe.net, data.classes).unwrap();
        assert_eq!(recipe.apply(net.clone()).unwrap(), net, "{name}: its choices are those of its network");
        assert!(text(name).unwrap().contains("[network]"), "{name}");
    }
}

#[test]
fn errors_point_at_the_line_and_offer_the_nearest_key() {
    let good = "name = 'x'\nsummary = 's'\nnet = 'caffenet'\nepochs = 3\nbatch = 8\nlr = 0.01\nmomentum = 0.9\n\
                weight_decay = 5e-4\n[schedule]\nkind = 'step'\nevery = 2\nfactor = 0.1\n[bias]\nlr = 2\n\
                [layers.conv1]\nlr = 0.5\n[preprocess]\nmean = 'channels'\n[augment]\nmirror = true\n";
    Recipe::from_toml(good, "r.toml").unwrap();
    for (from, to, expected) in [
        ("epochs", "epoch", ["r.toml:4:", "did you mean `epochs`?"]),
        ("batch = 8", "batch = 0", ["r.toml:5:", "between 1"]),
        ("batch = 8", "batch = 'x'", ["r.toml:5:", "string"]),
        ("lr = 0.01", "lr = nan", ["r.toml:6:", "above 0"]),
        ("momentum = 0.9", "momentum = 1.0", ["r.toml:7:", "between 0 and"]),
        ("kind = 'step'", "kind = 'steps'", ["r.toml:", "did you mean `step`?"]),
        ("every = 2", "evry = 2", ["r.toml:11:", "did you mean `every`?"]),
        ("every = 2", "every = 0", ["r.toml:11:", "above 0"]),
        ("factor = 0.1", "factor = 3", ["r.toml:12:", "at most 1"]),
        ("lr = 2", "lrs = 2", ["r.toml:14:", "did you mean `lr`?"]),
        ("lr = 0.5", "lr = -1", ["r.toml:16:", "between 0"]),
        ("'channels'", "'chanels'", ["r.toml:18:", ""]),
        ("mirror = true", "miror = true", ["r.toml:20:", "did you mean `mirror`?"]),
        ("mirror = true", "area = [0.9, 0.1]", ["r.toml:20:", "must rise"]),
    ] {
        let bad = good.replacen(from, to, 1);
        assert_ne!(bad, good);
        let error = Recipe::from_toml(&bad, "r.toml").unwrap_err();
        assert_eq!(error.exit_code(), 2);
        let error = error.to_string();
        assert!(expected.iter().all(|part| error.contains(part)), "{from} -> {to}: {error}");
    }
}

#[test]
fn unknown_recipes_and_layers_get_a_hint() {
    let error = load("fintune").unwrap_err().to_string();
    assert!(error.contains("did you mean `finetune`?"), "{error}");
    assert!(load("no/such.toml").unwrap_err().to_string().contains("no/such.toml"));
    let mut recipe = load("finetune").unwrap();
    recipe.layers = BTreeMap::from([(
        "conv9".to_string(),
        LayerRates { lr: 0.0, bias_lr: None, decay: 1.0, changes: vec![] },
    )]);
    let error = recipe.apply(zoo::by_name("torchvision", 5).unwrap()).unwrap_err().to_string();
    assert!(error.contains("[layers.conv9]") && error.contains("did you mean"), "{error}");
}

#[test]
fn hidden_widths_replace_the_network_s() {
    let names = |net: &Network| net.layers.iter().map(|l| l.name.clone()).collect::<Vec<_>>().join(" ");
    let mut recipe = load("finetune").unwrap();
    recipe.layers.clear();
    let torchvision = || zoo::torchvision(7);
    for (widths, tail) in [
        (vec![], "pool5 drop6 fc8"),
        (vec![2048], "pool5 drop6 fc6 relu6 drop7 fc8"),
        (vec![300, 200], "pool5 drop6 fc6 relu6 drop7 fc7 relu7 fc8"),
    ] {
        recipe.hidden = Some(widths.clone());
        let net = recipe.apply(torchvision()).unwrap();
        assert!(names(&net).ends_with(tail), "{}", names(&net));
        let outputs: Vec<usize> =
            net.trace().unwrap().iter().filter(|t| t.params() > 0).map(|t| t.biases()).collect();
        assert_eq!(outputs[5..], [&widths[..], &[7]].concat());
        // A run that is resumed applies its recipe to the network that it already changed.
        assert_eq!(recipe.apply(net.clone()).unwrap(), net);
    }
    recipe.hidden = Some(vec![512]);
    let net = recipe.apply(zoo::alexnet_2012(7)).unwrap();
    assert!(names(&net).ends_with("pool5 fc6 relu6 drop6 fc8"), "{}", names(&net));
    for wrong in [vec![1, 2, 3], vec![0]] {
        recipe.hidden = Some(wrong);
        assert!(recipe.apply(torchvision()).unwrap_err().to_string().contains("2 hidden"));
    }
}

#[test]
fn the_dropout_rate_replaces_the_network_s() {
    let mut recipe = load("finetune").unwrap();
    recipe.dropout = Some(0.25);
    let net = recipe.apply(zoo::by_name("torchvision", 5).unwrap()).unwrap();
    let rates: Vec<f64> = net
        .layers
        .iter()
        .filter_map(|l| if let Op::Dropout(d) = &l.op { Some(d.rate) } else { None })
        .collect();
    assert_eq!(rates, [0.25, 0.25]);
}

#[test]
fn differences_are_named_key_by_key() {
    let original = load("finetune").unwrap();
    assert!(original.differences(&original).is_empty());
    let mut changed = original.clone();
    changed.epochs = 5;
    changed.from = None;
    changed.warmup_epochs = 0.5;
    changed.layers.remove("conv5");
    changed.layers.insert("fc8".into(), LayerRates { lr: 3.0, bias_lr: None, decay: 1.0, changes: vec![] });
    let lines = changed.differences(&original);
    for expected in [
        "epochs = 5, not 10",
        "no from, which was \"imagenet\"",
        "warmup_epochs = 0.5, not 0.0",
        "layers.fc8.lr = 3.0",
        "no layers.conv5.lr, which was 0.2",
    ] {
        assert!(lines.iter().any(|l| l == expected), "{expected}: {lines:?}");
    }
}
