(component
  (import "kilnbox:architecture/tensor@0.1.0" (instance $t
    (export "tensor" (type (sub resource)))))
  (core module $m (memory (export "memory") 1) (table 4 funcref) (global (mut i32) (i32.const 7))
    (func (export "run") (param i32) (result i32) (loop (br_if 0 (i32.eqz (local.get 0)))) (i32.add (local.get 0) (i32.const 1)))
    (elem (i32.const 0) func 0) (data (i32.const 8) "abc"))
  (core instance $i (instantiate $m))
  (func (export "run") (param "a" u32) (result u32) (canon lift (core func $i "run"))))