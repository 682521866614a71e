//! Native wheels of PyPI. Each is imported, and then works once for each line of standard input.

use super::{File, Kind, Life, Lines, Python, Subject};

/// A wheel, with an expression to evaluate.
struct Wheel {
    /// The distribution's name on PyPI.
    name: &'static str,
    /// The modules, as in `import`.
    import: &'static str,
    /// An expression with the same value each time.
    work: &'static str,
}

macro_rules! wheels {
    ($($name:literal: $import:literal => $work:literal,)*) => {
        const WHEELS: &[Wheel] = &[$(Wheel { name: $name, import: $import, work: $work }),*];

        /// The distribution of each wheel, for `pip`.
        fn distribution(name: &str) -> &'static [&'static str] {
            match name { $($name => &[$name],)* _ => &[] }
        }
    };
}

wheels! {
    "numpy": "numpy" => "numpy.arange(1000000).reshape(1000, 1000).sum(axis=0)[:3].tolist()",
    "scipy": "scipy.linalg, scipy.fft, scipy.optimize" => "scipy.linalg.det([[1, 2], [3, 4]]).round(6), scipy.optimize.brentq(lambda x: x * x - 2, 0, 2, xtol=1e-9).__round__(6)",
    "pandas": "pandas" => "pandas.DataFrame({'a': range(1000), 'b': ['x', 'y'] * 500}).groupby('b').a.sum().to_dict()",
    "pyarrow": "pyarrow, pyarrow.compute" => "pyarrow.compute.sum(pyarrow.array(range(10000))).as_py()",
    "scikit-learn": "sklearn.ensemble, sklearn.datasets" => "sklearn.ensemble.RandomForestClassifier(5, random_state=0).fit(*sklearn.datasets.load_iris(return_X_y=True)).predict([[5, 3, 1, 0]]).tolist()",
    "polars": "polars" => "polars.DataFrame({'a': list(range(1000))}).select(polars.col('a').sum()).item()",
    "lxml": "lxml.etree" => "len(lxml.etree.fromstring('<a>' + '<b c=\"d\">e</b>' * 1000 + '</a>').findall('b'))",
    "pillow": "PIL.Image" => "PIL.Image.new('RGB', (300, 200), 'red').resize((30, 20)).rotate(45).getpixel((15, 10))",
    "cryptography": "cryptography.fernet, cryptography.hazmat.primitives.hashes as h" => "h.SHA256().name, cryptography.fernet.Fernet(b'A' * 43 + b'=').decrypt(cryptography.fernet.Fernet(b'A' * 43 + b'=').encrypt(b'text'))",
    "grpcio": "grpc" => "str(grpc.insecure_channel('127.0.0.1:1').unary_unary('/a/b'))[:5]",
    "protobuf": "google.protobuf.struct_pb2 as s" => "len(s.Struct(fields={str(i): s.Value(number_value=i) for i in range(100)}).SerializeToString())",
    "psycopg2-binary": "psycopg2.extensions" => "psycopg2.extensions.adapt('it''s').getquoted()",
    "orjson": "orjson" => "len(orjson.dumps(orjson.loads(b'[1, 2.5, \"x\", {\"a\": null}]' )))",
    "matplotlib": "matplotlib; matplotlib.use('agg'); import matplotlib.figure" => "len(matplotlib.figure.Figure().subplots().plot([1, 2, 3]))",
    "opencv-python-headless": "cv2, numpy" => "cv2.GaussianBlur(numpy.ones((100, 100), numpy.uint8), (5, 5), 0).sum().item()",
    "numba": "numba" => "numba.njit(lambda n: n * n)(12)",
    "shapely": "shapely.geometry" => "shapely.geometry.Point(0, 0).buffer(1).intersection(shapely.geometry.box(0, 0, 1, 1)).area.__round__(3)",
    "onnxruntime": "onnxruntime" => "onnxruntime.get_available_providers()[-1]",
    "uvloop": "asyncio, uvloop" => "uvloop.run(asyncio.sleep(0.01, 'slept'))",
    "gevent": "gevent" => "[g.get() for g in gevent.joinall([gevent.spawn(len, 'x' * n) for n in range(10)])]",
    "duckdb": "duckdb" => "duckdb.sql('select sum(range) from range(100000)').fetchall()",
    "tokenizers": "tokenizers.models, tokenizers.pre_tokenizers as p" => "p.Whitespace().pre_tokenize_str('some words here')",
    "h5py": "h5py" => "h5py.File('x.h5', 'w', driver='core', backing_store=False).create_dataset('d', data=list(range(100))).shape",
    "zstandard": "zstandard" => "len(zstandard.decompress(zstandard.compress(b'text' * 100000)))",
    "pydantic": "pydantic" => "pydantic.TypeAdapter(list[int]).validate_python(['1', 2, 3.0])",
    "aiohttp": "aiohttp, asyncio, yarl" => "str(yarl.URL('http://127.0.0.1/a b')), aiohttp.BasicAuth('a', 'b').encode()",
    "pyyaml": "yaml" => "yaml.load('a: [1, {b: c}]', yaml.CSafeLoader)",
    "regex": "regex" => "regex.findall(r'\\p{Lu}\\w+', 'Some Words here ' * 100)[:2]",
    "msgpack": "msgpack" => "msgpack.unpackb(msgpack.packb({'a': [1, 2, 3] * 100}))['a'][:2]",
    "lz4": "lz4.frame" => "len(lz4.frame.decompress(lz4.frame.compress(b'text' * 100000)))",
    "brotli": "brotli" => "len(brotli.decompress(brotli.compress(b'text' * 10000)))",
    "bcrypt": "bcrypt" => "bcrypt.hashpw(b'word', b'$2b$04$abcdefghijklmnopqrstuu')",
    "pynacl": "nacl.hash, nacl.encoding" => "nacl.hash.blake2b(b'text')[:8]",
    "psutil": "psutil" => "psutil.Process().name()",
    "pyzmq": "zmq, zmq.utils.z85 as z" => "z.decode(z.encode(b'some more text 8')), zmq.has('curve')",
    "tornado": "tornado.util, tornado.websocket" => "tornado.util._websocket_mask(b'abcd', b'text' * 10)[:4]",
    "rapidfuzz": "rapidfuzz.fuzz" => "rapidfuzz.fuzz.ratio('some words', 'same word')",
    "scikit-image": "skimage.filters, numpy" => "skimage.filters.sobel(numpy.eye(50)).sum().round(3).item()",
    "pycryptodome": "Crypto.Cipher.AES as a" => "a.new(b'k' * 16, a.MODE_ECB).encrypt(b'text' * 4).hex()",
    "faiss-cpu": "faiss, numpy" => "[(i := faiss.IndexFlatL2(8)).add(numpy.eye(8, dtype='float32')), i.search(numpy.eye(8, dtype='float32')[:1], 1)[1].tolist()][1]",
    "hiredis": "hiredis" => "[(r := hiredis.Reader()).feed(b'*2\\r\\n$1\\r\\na\\r\\n:5\\r\\n'), r.gets()][1]",
    "xxhash": "xxhash" => "xxhash.xxh64(b'text' * 1000).hexdigest()",
    "pymongo": "bson" => "len(bson.encode({'a': [1, 2, {'b': 'c'}] * 100}))",
    "lightgbm": "lightgbm, numpy" => "lightgbm.train({'num_threads': 1, 'verbose': -1}, lightgbm.Dataset(numpy.arange(200.).reshape(100, 2), numpy.arange(100.)), 3).num_trees()",
    "av": "av" => "av.codec.Codec('h264', 'r').name",
    "sqlalchemy": "sqlalchemy" => "sqlalchemy.create_engine('sqlite://').connect().execute(sqlalchemy.text('select 6 * 7')).scalar()",
    "rasterio": "rasterio, rasterio.features, numpy" => "len(list(rasterio.features.shapes(numpy.eye(5, dtype='uint8'))))",
    "pyproj": "pyproj" => "pyproj.Transformer.from_crs(4326, 3857).transform(10, 20)[0].__round__(2)",
    "pymupdf": "pymupdf" => "pymupdf.open().new_page().rect.width",
    "pillow-heif": "pillow_heif, PIL.Image" => "pillow_heif.from_pillow(PIL.Image.new('RGB', (64, 64), 'red')).size",
    "datafusion": "datafusion" => "datafusion.SessionContext().sql('select 6 * 7 as n').to_pydict()",
    "cffi": "cffi" => "cffi.FFI().new('int[1000]').__len__()",
    "statsmodels": "statsmodels.api as sm, numpy" => "sm.OLS(numpy.arange(50.), sm.add_constant(numpy.arange(50.))).fit().params.round(6).tolist()",
}

/// All wheels.
pub fn all(python: &Python) -> Vec<Subject> {
    let file = File { name: "use.py", text: include_str!("../../subjects/use.py") };
    let subject = |wheel: &Wheel| Subject {
        kind: Kind::Wheel,
        name: wheel.name.to_owned(),
        packages: &["python3-venv"],
        wheels: distribution(wheel.name),
        program: python.program().into(),
        argv: vec![python.program(), "use.py".to_owned(), wheel.import.to_owned(), wheel.work.to_owned()],
        files: vec![file],
        prepare: None,
        life: Life::Lines(Lines { greets: true, question: "again\n" }),
    };
    WHEELS.iter().map(subject).collect()
}
