module gomodule

go 1.24

require (
	github.com/x448/float16 v0.8.4
	lessismore v0.0.0
)

require (
	github.com/google/uuid v1.1.1 // indirect
	github.com/pkg/errors v0.9.1 // indirect
	gorgonia.org/cu v0.9.6 // indirect
)

replace lessismore => ../..
