(component
  (type $i (instance (type $d (enum "float32" "float64")) (export "dtype" (type (eq $d)))))
  (core module $m (memory (export "memory") 1) (func (export "describe") (result i32) i32.const 0)
    (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) i32.const 16))
  (core instance $c (instantiate $m))
  (type $r (record (field "authors" (list string)) (field "n" u32)))
  (func $f (result (list string)) (canon lift (core func $c "describe") (memory $c "memory") (realloc (func $c "cabi_realloc"))))
  (instance $e (export "describe" (func $f)))
  (export "kilnbox:architecture/about@0.1.0" (instance $e)))