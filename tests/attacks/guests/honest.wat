;; Adds two tensors of two elements and answers with the first of them as its model's version: an ordinary run.
(data (i32.const 64) "\02\00\00\00")
(func (export "kilnbox:architecture/about@0.1.0#describe") (result i32) (local $a i32) (local $b i32) (local $sum i32)
    (local.set $a (call $tensor.full (i32.const 64) (i32.const 1) (f64.const 2.5) (i32.const 0)))
    (local.set $b (call $tensor.full (i32.const 64) (i32.const 1) (f64.const 4) (i32.const 0)))
    (local.set $sum (call $elementwise.add (local.get $a) (local.get $b)))
    (call $tensor.tensor.read-float32 (local.get $sum) (i32.const 128))
    (call $tensor.tensor.drop (local.get $a))
    (call $tensor.tensor.drop (local.get $b))
    (call $tensor.tensor.drop (local.get $sum))
    ;; Behind six lists, and a byte for the equivariance.
    (i32.store (i32.const 0xc034) (i32.trunc_f32_u (f32.load (i32.load (i32.const 128)))))
    (i32.const 0xc000))
