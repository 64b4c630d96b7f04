// SPDX-License-Identifier: Apache-2.0

package explain

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	yamlutil "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"
)

// Decode reads objects from YAML or JSON, of several documents perhaps. Those that name no namespace, and need
// one, get the given. It refuses what it does not know, kinds and fields alike: a rule that is
// misspelt would be explained away.
func Decode(r io.Reader, namespace string) ([]Typed, error) {
	var out []Typed
	docs := yamlutil.NewYAMLReader(bufio.NewReader(r))
	for i := 1; ; i++ {
		doc, err := docs.Read()
		switch {
		case errors.Is(err, io.EOF):
			return out, nil
		case err != nil:
			return nil, fmt.Errorf("document %d: %w", i, err)
		}
		objects, err := decodeDocument(doc, namespace)
		if err != nil {
			return nil, fmt.Errorf("document %d: %w", i, err)
		}
		out = append(out, objects...)
	}
}

func decodeDocument(doc []byte, namespace string) ([]Typed, error) {
	var meta metav1.TypeMeta
	text, err := yaml.YAMLToJSONStrict(doc)
	if err != nil {
		return nil, err
	}
	if text = bytes.TrimSpace(text); bytes.Equal(text, []byte("null")) {
		return nil, nil // comments alone
	}
	if err := json.Unmarshal(text, &meta); err != nil {
		return nil, errors.New("it is no object with apiVersion and kind")
	}
	if meta.Kind == "List" && meta.APIVersion == "v1" {
		return decodeList(text, namespace)
	}
	t, err := decodeObject(text, meta, namespace)
	return []Typed{t}, err
}

func decodeList(text []byte, namespace string) ([]Typed, error) {
	var list struct {
		Items []json.RawMessage `json:"items"`
	}
	if err := json.Unmarshal(text, &list); err != nil {
		return nil, err
	}
	var out []Typed
	for i, item := range list.Items {
		var meta metav1.TypeMeta
		if err := json.Unmarshal(item, &meta); err != nil {
			return nil, fmt.Errorf("item %d: it is no object with apiVersion and kind", i)
		}
		t, err := decodeObject(item, meta, namespace)
		if err != nil {
			return nil, fmt.Errorf("item %d: %w", i, err)
		}
		out = append(out, t)
	}
	return out, nil
}

func decodeObject(text []byte, meta metav1.TypeMeta, namespace string) (Typed, error) {
	if meta.Kind == "" || meta.APIVersion == "" {
		return Typed{}, errors.New("it has no apiVersion and kind")
	}
	k, err := kindOf(schema.FromAPIVersionAndKind(meta.APIVersion, meta.Kind))
	if err != nil {
		return Typed{}, err
	}
	o := k.New()
	if err := yaml.UnmarshalStrict(text, o); err != nil {
		return Typed{}, fmt.Errorf("%s: %w", k, err)
	}
	if o.GetName() == "" {
		return Typed{}, fmt.Errorf("a %s without a name", k)
	}
	if !k.Cluster && o.GetNamespace() == "" {
		o.SetNamespace(namespace)
	}
	return Typed{Kind: k, Object: o}, nil
}
