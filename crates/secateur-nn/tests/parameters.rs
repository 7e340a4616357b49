//! What a model asks its parameters for, and the errors where they do not fit.

use candle_core::{Device, Tensor};
use secateur_nn::{Error, Fit, Kind, LayerName, Mismatch, Parameters, Result, Scope, Wanted};
use std::collections::BTreeMap;

fn tensor(shape: &[usize]) -> Tensor {
    Tensor::ones(shape, candle_core::DType::F32, &Device::Cpu).unwrap()
}

fn parameters(shapes: &[(&str, &[usize])]) -> Parameters {
    let tensors = shapes.iter().map(|(name, shape)| ((*name).to_owned(), tensor(shape)));
    Parameters::new("folder", tensors)
}

/// A model of a weight, a table that is not learned, and something that it does not need.
fn model(scope: &Scope<'_>) -> Result<[Tensor; 2]> {
    let block = scope.at("block").at("0.norm");
    block.ignore("ids");
    Ok([block.get("weight", 3)?, scope.constant("table", (2, 5))?])
}

#[test]
fn what_fits_is_built() {
    let shapes: [(&str, &[usize]); 4] = [
        ("block.0.norm.weight", &[3]),
        ("table", &[2, 5]),
        ("block.0.norm.ids", &[1]),
        ("other", &[7]),
    ];
    let parameters = parameters(&shapes);
    let [weight, table] = parameters.build(|scope| model(&scope)).unwrap();
    assert_eq!((weight.dims(), table.dims()), (&[3][..], &[2, 5][..]));
    assert_eq!(weight.to_vec1::<f32>().unwrap(), [1.0; 3]);
    let Fit { wanted, unexpected } = parameters.fit(|scope| model(&scope)).unwrap();
    assert_eq!(unexpected, ["other"]);
    let expected: BTreeMap<String, Wanted> = [
        ("block.0.norm.weight".to_owned(), Wanted { shape: vec![3], kind: Kind::Tensor }),
        ("table".to_owned(), Wanted { shape: vec![2, 5], kind: Kind::Constant }),
    ]
    .into();
    assert_eq!(wanted, expected);
    assert_eq!(Parameters::wanted(BTreeMap::new(), |scope| model(&scope)).unwrap(), expected);
    let placeholders =
        Parameters::placeholders("", shapes.map(|(name, shape)| (name.to_owned(), shape.to_vec())));
    assert_eq!(placeholders.unwrap().fit(|scope| model(&scope)).unwrap().wanted, expected);
}

#[test]
fn what_does_not_fit_is_told() {
    let told = |shapes: &[(&str, &[usize])]| match parameters(shapes).build(|scope| model(&scope)) {
        Err(Error::Parameters { origin, problems }) => {
            assert_eq!(origin, "folder");
            problems
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(told(&[("table", &[2, 5])]), "1 missing (block.0.norm.weight)");
    assert_eq!(
        told(&[("block.0.norm.weight", &[3]), ("table", &[5, 2])]),
        "1 of another shape (table: [5, 2] in the file, [2, 5] wanted)"
    );
    assert_eq!(
        told(&[("block.0.norm.weight", &[4]), ("weight", &[3])]),
        "1 missing (table); 1 of another shape (block.0.norm.weight: [4] in the file, [3] wanted); \
         1 unexpected (weight)"
    );
    // No more than ten are named.
    for (count, end) in [(10, "n9)"), (11, "n9, ...)")] {
        let wanted: BTreeMap<String, Vec<usize>> = (0..count)
            .map(|i| (if i < 10 { format!("n{i}") } else { "z".to_owned() }, vec![1]))
            .collect();
        let error = Mismatch::new(&wanted, [], |_| false).check("file").unwrap_err().to_string();
        assert!(
            error.contains(&format!("{count} missing (n0, n1,")) && error.ends_with(end),
            "{error}"
        );
    }
}

#[test]
fn names_and_shapes_are_compared() {
    let wanted: BTreeMap<String, Vec<usize>> =
        [("a".to_owned(), vec![2]), ("b".to_owned(), vec![3])].into();
    let found = |b: &'static [usize], other: &str| {
        let found = [("a".to_owned(), &[2][..]), ("b".to_owned(), b), (other.to_owned(), &[9][..])];
        Mismatch::new(&wanted, found.iter().map(|(name, shape)| (name, *shape)), |name| {
            name == "known"
        })
    };
    assert!(found(&[3], "known").unexpected().is_empty());
    let more = found(&[3], "c");
    assert_eq!(more.unexpected(), ["c"]);
    more.check("file").unwrap();
    let error = found(&[4], "known").check("file").unwrap_err().to_string();
    assert_eq!(
        error,
        "file: the weights do not fit the configuration: 1 of another shape (b: [4] in the file, \
         [3] wanted)"
    );
}

/// 2^40 elements are the most, however they are laid out; a size of 0 does not hide the others.
#[test]
fn sizes_that_no_model_has_are_refused() {
    let none = parameters(&[]);
    let ask = |shape: &'static [usize]| {
        let asked = none.build(|scope| scope.get("w", shape).map(drop));
        asked.unwrap_err().to_string().contains("a size is wrong")
    };
    let cases: [(&[usize], bool); 6] = [
        (&[1 << 40], false),
        (&[1 << 20, 1 << 20], false),
        (&[(1 << 40) + 1], true),
        (&[1 << 20, 1 << 20, 2], true),
        (&[0, 1 << 41], true),
        (&[usize::MAX, usize::MAX], true),
    ];
    for (shape, refused) in cases {
        assert_eq!(ask(shape), refused, "{shape:?}");
    }
}

#[test]
fn places_have_names_and_sizes() {
    let sizes: BTreeMap<LayerName, usize> = [("block.0".into(), 5)].into();
    let parameters = parameters(&[("block.0.weight", &[3])]).with_sizes(sizes);
    let seen = parameters.build(|scope| {
        let block = scope.at("block").at(0);
        let contains = (block.contains("weight"), block.contains("bias"), scope.contains("weight"));
        Ok::<_, Error>((block.layer_name(), block.size(8), scope.size(8), contains))
    });
    assert_eq!(seen.unwrap(), ("block.0".into(), 5, 8, (true, false, false)));
    let sizes: BTreeMap<LayerName, usize> = [("block".into(), 6)].into();
    let wanted = Parameters::wanted(sizes, |scope| {
        scope.at("block").get("w", scope.at("block").size(8)).map(drop)
    })
    .unwrap();
    assert_eq!(wanted["block.w"].shape, [6]);
    let name = LayerName::from("block.0");
    assert_eq!((name.weight(), name.bias()), ("block.0.weight".into(), "block.0.bias".into()));
    assert_eq!([name.to_string(), format!("{name:?}"), String::from(name)], ["block.0"; 3]);
}

#[test]
fn parameters_are_replaced_and_renamed() {
    let mut parameters = parameters(&[("a", &[2]), ("b", &[3])]);
    parameters.replace("a", tensor(&[4])).unwrap();
    assert_eq!(parameters.get("a").unwrap().shape().dims(), [4]);
    assert!(parameters.get("c").is_none());
    let error = parameters.replace("c", tensor(&[1])).unwrap_err().to_string();
    assert_eq!(error, "layer c: no such parameter");
    let renamed =
        parameters.map(|name, tensor| Ok((format!("x.{name}"), tensor.reshape((1, ()))?))).unwrap();
    let found: Vec<(&str, &[usize])> =
        renamed.iter().map(|(name, weight)| (name, weight.shape().dims())).collect();
    assert_eq!(found, [("x.a", &[1, 4][..]), ("x.b", &[1, 3])]);
}
