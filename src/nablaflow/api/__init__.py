"""The functions of `import nablaflow as nf`, a file each; `nablaflow` loads each on first use."""
