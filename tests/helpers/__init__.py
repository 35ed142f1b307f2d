"""What tests share: judges, random arguments, small networks."""
