package backend

import (
	"math"

	"github.com/x448/float16"

	"lessismore/plugin/internal/fault"
	"lessismore/plugin/internal/steps"
)

// CheckTable names the first wrong argument of a block table in the CPU's memory, once what the rows see is known to be
// right. Entries of pages in which a row sees no token are not read. Stores then tells how many pages there are.
func (a *Attention) CheckTable() error {
	switch {
	case a.Pages < 0 || a.Pages > math.MaxInt32:
		return fault.Bad("n_pages = %d is not in 0 .. %d", a.Pages, math.MaxInt32)
	case a.Table == 0 && a.Pages != 0:
		return fault.Bad("n_pages = %d, but table = NULL", a.Pages)
	case a.Table == 0:
		return nil
	}
	size := int64(a.PageSize)
	needed := (a.Slots + size - 1) / size
	if a.Rows > 1 && (a.TableStride < needed || a.TableStride > maxAddress/MaxRows) {
		return fault.Bad("table_stride = %d is not in %d .. %d: a row has %d pages", a.TableStride, needed, maxAddress/MaxRows, needed)
	}
	highest := int32(-1)
	for row := range int(a.Rows) {
		last, err := a.checkRow(row, a.tableOf(row, int(needed)))
		if err != nil {
			return err
		}
		highest = max(highest, last)
	}
	if a.pages = a.Pages; a.pages == 0 {
		a.pages = int64(highest) + 1
	}
	return nil
}

// Stores is the number of pages of key and value, and of slots in each; without a table each row is a page.
func (a *Attention) Stores() (pages, slots int64) {
	if a.Table == 0 {
		return int64(a.Rows), a.Slots
	}
	return a.pages, int64(a.PageSize)
}

// tableOf is a row's part of the table.
func (a *Attention) tableOf(row, pages int) []int32 {
	return steps.At[int32](a.Table+uintptr(4*a.TableStride)*uintptr(row), pages)
}

// checkRow names the first page of a row that is none, of those that hold a token it sees; else the highest one.
func (a *Attention) checkRow(row int, table []int32) (highest int32, err error) {
	highest = -1
	sees, size := a.Sees(row), int(a.PageSize)
	positions, mask := steps.At[int32](sees.Positions, sees.Slots), steps.At[float16.Float16](sees.Mask, sees.Slots)
	slots := sees.Slots
	if positions == nil {
		slots = sees.Prefix()
	}
	for first := 0; first < slots; first += size {
		if (positions != nil || mask != nil) && !sees.Any(positions, mask, first, min(first+size, slots)) {
			continue
		}
		page := table[first/size]
		if page < 0 || a.Pages > 0 && int64(page) >= a.Pages {
			return highest, a.wrongPage(row, first/size, page)
		}
		highest = max(highest, page)
	}
	return highest, nil
}

func (a *Attention) wrongPage(row, i int, page int32) error {
	if a.Pages > 0 {
		return fault.Bad("table[%d][%d] = %d is not in 0 .. %d, below n_pages", row, i, page, a.Pages-1)
	}
	return fault.Bad("table[%d][%d] = %d is negative, and the row sees tokens of that page", row, i, page)
}
